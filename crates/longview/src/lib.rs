//! Longview as a library: open a model, read a document of any length, ask it questions
