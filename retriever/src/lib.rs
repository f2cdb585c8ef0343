//! The retriever: finds a file in its shard and serves it over HTTP.
