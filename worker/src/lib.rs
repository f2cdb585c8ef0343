//! The worker: leases tasks, packs files into shards, uploads and commits them.
