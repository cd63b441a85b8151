//! The owner of every key and value: blocks, pages, contexts, attention over them, the memory ledger
