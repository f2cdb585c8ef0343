//! The whole system under test: harness for real Redis, real SeaweedFS and real processes, and the stories they run.
