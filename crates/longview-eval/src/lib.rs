//! Task builders, scorers and reports: what a method costs on a given model
