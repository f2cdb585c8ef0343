//! Tests of the whole retriever: a folder with shards below it, its requests counted and made to fail.

mod bigfiles;
mod cost;
mod damage;
mod deleting;
mod find;
mod graphql;
mod http;
mod keys;
mod signing;
mod support;
mod vectors;
