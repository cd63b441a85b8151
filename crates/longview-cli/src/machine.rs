//! What this machine has: processor, caches and memory.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use longview::{ProcessMemory, SystemMemory};

/// The processor and the memory, as far as the operating system tells.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: Option<String>,
    /// Hardware threads that this process may use.
    pub(crate) threads: usize,
    /// Instruction set extensions of interest that the processor has.
    pub(crate) features: Vec<&'static str>,
    /// Bytes of the first processor's caches, such as `L2` and 1,048,576.
    pub(crate) caches: Vec<(String, u64)>,
    /// Its memory.
    pub(crate) memory: SystemMemory,
}

impl Machine {
    /// Asks the operating system.
    pub(crate) fn look() -> Machine {
        Machine {
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: features(),
            caches: caches(),
            memory: SystemMemory::now(),
        }
    }
}

/// The most memory this process has held so far, in bytes; 0 where that cannot be found out.
pub(crate) fn peak_memory_bytes() -> u64 {
    let earlier = EARLIER_PEAK.load(Ordering::Relaxed);
    ProcessMemory::now().peak_bytes.max(earlier)
}

/// The peak before the system was last told to forget it.
static EARLIER_PEAK: AtomicU64 = AtomicU64::new(0);

/// Does what is no part of the program's own work, such as measuring the machine with a buffer of a
/// gigabyte: what that takes and gives back does not count in [`peak_memory_bytes`], where the
/// system can forget a peak.
pub(crate) fn beside_the_peak<T>(work: impl FnOnce() -> T) -> T {
    EARLIER_PEAK.fetch_max(peak_memory_bytes(), Ordering::Relaxed);
    let done = work();
    // Linux's word for it; anywhere else the file is not there.
    let _ = fs::write("/proc/self/clear_refs", "5");
    done
}

fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn caches() -> Vec<(String, u64)> {
    let read = |index: usize, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let mut caches = Vec::new();
    for index in 0..8 {
        let (Some(level), Some(kind), Some(size)) = (
            read(index, "level"),
            read(index, "type"),
            read(index, "size"),
        ) else {
            break;
        };
        if kind != "Instruction"
            && let Some(kibibytes) = size
                .strip_suffix('K')
                .and_then(|size| size.parse::<u64>().ok())
        {
            caches.push((format!("L{level}"), kibibytes * 1024));
        }
    }
    caches
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, is_x86_feature_detected!($name))),*]
        };
    }
    let features = present![
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512vbmi",
        "avx512bf16",
        "avx512fp16"
    ];
    features
        .into_iter()
        .chain(["amx-int8", "amx-bf16"].map(|name| (name, longview::Isa::Amx.is_available())))
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_aarch64_feature_detected!($name))),*]
        };
    }
    present!["neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2"]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(
            processor("a: b\nmodel name\t: Some CPU\n").as_deref(),
            Some("Some CPU")
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_done_beside_the_peak_does_not_count() {
        const BUFFER: usize = 256 << 20;
        let before = peak_memory_bytes();
        let sum = beside_the_peak(|| {
            let buffer = std::hint::black_box(vec![1_u8; BUFFER]);
            buffer.iter().map(|&byte| usize::from(byte)).sum::<usize>()
        });
        assert_eq!(sum, BUFFER);
        // Where the system does not forget, it counts.
        if fs::write("/proc/self/clear_refs", "5").is_ok() {
            assert!(peak_memory_bytes() < before + BUFFER as u64 * 3 / 4);
        }
        // The system counts pages of running threads in batches, so a number may be a little below an earlier one.
        assert!(peak_memory_bytes() + BUFFER as u64 / 8 >= before);
    }
}
