//! Tests of the whole retriever: a folder with shards below it, its requests counted and made to fail.

mod batch;
mod batch_forms;
mod bigfiles;
mod browser;
mod cost;
mod damage;
mod deleting;
mod disk;
mod endurance;
mod find;
mod graphql;
mod http;
mod keys;
mod openapi;
mod rfc9110;
mod s3clients;
mod s3face;
mod s3listing;
mod schemathesis;
mod signing;
mod slow;
mod support;
mod uids;
mod vectors;
mod webm;
mod wire;
