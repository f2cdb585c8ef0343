//! Tests of the whole retriever: a folder with shards below it, its requests counted and made to fail.

mod batch;
mod batch_forms;
mod bigfiles;
mod cost;
mod damage;
mod deleting;
mod find;
mod http;
mod support;
mod vectors;
