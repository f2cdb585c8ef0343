//! The stories the whole system is tested with, one module each, in one binary.

mod queue;
