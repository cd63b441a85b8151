//! Memory as the operating system counts it: of this process and of the machine.

use std::fs;

/// What this process holds; 0 where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Bytes in memory now.
    pub resident_bytes: u64,
    /// Those of them that are pages of files: of the program, and of models that are mapped.
    pub file_bytes: u64,
    /// The most bytes that were in memory at once.
    pub peak_bytes: u64,
}

/// What the machine has; `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemMemory {
    /// Bytes in all.
    pub total: Option<u64>,
    /// Bytes that could be used now without swapping.
    pub available: Option<u64>,
    /// Bytes that a container or service limits this process to.
    pub limit: Option<u64>,
}

impl ProcessMemory {
    /// Asks the system.
    pub fn now() -> ProcessMemory {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        ProcessMemory {
            resident_bytes: bytes(&status, "VmRSS:").unwrap_or(0),
            file_bytes: bytes(&status, "RssFile:").unwrap_or(0),
            peak_bytes: bytes(&status, "VmHWM:").unwrap_or(0),
        }
    }
}

impl SystemMemory {
    /// Asks the system.
    pub fn now() -> SystemMemory {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let limit = fs::read_to_string("/sys/fs/cgroup/memory.max");
        SystemMemory {
            total: bytes(&memory, "MemTotal:"),
            available: bytes(&memory, "MemAvailable:"),
            limit: limit.ok().and_then(|text| text.trim().parse().ok()),
        }
    }

    /// Bytes that a model may reasonably be given: what is available, or what the limit leaves.
    pub fn usable(&self) -> Option<u64> {
        match (self.available, self.limit) {
            (Some(available), Some(limit)) => Some(available.min(limit)),
            (available, limit) => available.or(limit),
        }
    }
}

/// The number behind `key` in one of Linux's tables, which count in kibibytes.
fn bytes(table: &str, key: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "MemTotal:  16 kB\nMemFree: 3 kB\n";
        assert_eq!(bytes(table, "MemFree:"), Some(3072));
        assert_eq!(bytes("MemTotal: many\n", "MemTotal:"), None);
    }

    #[test]
    fn usable_memory_is_the_smaller_of_what_is_known() {
        let mut memory = SystemMemory {
            available: Some(10),
            limit: Some(4),
            ..SystemMemory::default()
        };
        assert_eq!(memory.usable(), Some(4));
        memory.limit = None;
        assert_eq!(memory.usable(), Some(10));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_is_at_least_what_is_held() {
        let held = std::hint::black_box(vec![1_u8; 32 << 20]);
        let memory = ProcessMemory::now();
        let least = std::hint::black_box(&held).len() as u64;
        assert!(memory.peak_bytes >= memory.resident_bytes && memory.resident_bytes >= least);
        assert!(SystemMemory::now().total.is_some_and(|total| total > least));
    }
}
