//! The des command line: pack, inspect, verify, submit, and a whole cluster in one process.
