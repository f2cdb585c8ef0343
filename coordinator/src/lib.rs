//! The coordinator: accepts manifests, plans shards, queues tasks, reconciles.
