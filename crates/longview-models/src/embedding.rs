//! The embedding, whose rows are read where they lie in the file.
//!
//! A row that is read brings pages of the file into memory, and the system maps those around it too:
//! a long prompt would end with the whole matrix in memory a second time, beside the packed one that
//! makes the logits. So they are given back now and then; the next read takes them from the
//! system's cache of the file.

use std::sync::atomic::{AtomicUsize, Ordering};

use longview_weights::{Tensor, WeightFile};

/// Bytes of an embedding that stay in memory at most, where its pages can be given back.
const RESIDENT_BYTES: usize = 4 << 20;

/// What the system maps at once where one byte is touched: 16 pages on Linux.
const FAULT_AROUND: usize = 64 << 10;

/// How much of the embedding was read since its pages were last given back.
#[derive(Debug, Default)]
pub(crate) struct EmbeddingPages {
    rows: AtomicUsize,
}

impl EmbeddingPages {
    /// Rows that may be read before [`EmbeddingPages::read`] is to be told.
    pub(crate) fn rows_at_once(table: &Tensor<'_>) -> usize {
        // A row lies in one such stretch of pages or on the edge of two.
        (RESIDENT_BYTES / (table.row_bytes() + 2 * FAULT_AROUND)).max(1)
    }

    /// Says that `rows` rows were read; gives the pages back when that makes too many.
    pub(crate) fn read(&self, file: &WeightFile, table: &Tensor<'_>, rows: usize) {
        if resident_bytes(file, table) == table.data.len() as u64 {
            return;
        }
        let before = self.rows.fetch_add(rows, Ordering::Relaxed);
        if before + rows >= Self::rows_at_once(table) {
            self.rows.store(0, Ordering::Relaxed);
            file.release(table.name, 0..table.data.len());
        }
    }
}

/// Bytes of the embedding `table` of `file` that are in memory at most.
pub(crate) fn resident_bytes(file: &WeightFile, table: &Tensor<'_>) -> u64 {
    let all = table.data.len() as u64;
    if file.can_release(table.name) {
        // Before pages are given back, as many again may be read.
        all.min(2 * RESIDENT_BYTES as u64)
    } else {
        all
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use longview_kernels::Format;
    use longview_weights::gguf::GgufHeader;

    use super::*;

    fn file_bytes_in_memory() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let kibibytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
        kibibytes.parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn a_long_prompt_does_not_leave_the_whole_matrix_in_memory() {
        const ROWS: usize = 24 << 10;
        const HIDDEN: usize = 1024;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut header = GgufHeader::new();
        header.tensor("e", Format::F32, &[ROWS, HIDDEN]).unwrap();
        let mut writer = header.create(&path).unwrap();
        writer.append("e", &vec![1; ROWS * HIDDEN * 4]).unwrap();
        writer.finish().unwrap();

        let file = WeightFile::open(&path).unwrap();
        let table = file.tensor("e").unwrap();
        let most = resident_bytes(&file, &table) as usize;
        assert!(most < table.data.len() / 2);
        let before = file_bytes_in_memory();
        let pages = EmbeddingPages::default();
        let mut largest = 0;
        for row in 0..ROWS {
            assert_eq!(table.row(row)[HIDDEN], 1);
            if row % 16 == 0 {
                largest = largest.max(file_bytes_in_memory().saturating_sub(before));
            }
            pages.read(&file, &table, 1);
        }
        // Other tests of this process read files too.
        assert!(largest <= most + (8 << 20), "{largest}");
        assert!(largest > 1 << 20, "{largest}");
    }
}
