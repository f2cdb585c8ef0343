//! Tests of the whole retriever: a folder with shards below it, its requests counted and made to fail.

mod bigfiles;
mod cost;
mod damage;
mod deleting;
mod find;
mod http;
mod s3clients;
mod s3face;
mod s3listing;
mod support;
mod vectors;
