//! The operations of S3 that there are. All others are answered by the library: not implemented.

use s3s::dto::{
    Bucket, CommonPrefix, EncodingType, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, Object,
    ObjectStorageClass,
};
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result};

use super::Front;
use super::errors::{log, refused, s3_error};
use super::listing::Page;
use super::object::{Asked, content_range, etag, signed, timestamp};
use super::query::{MAX_KEYS, Query, parse_token, token, url_encoded};
use super::window::Item;

/// What every bucket of S3 has. Signatures of any region are accepted.
const REGION: &str = "us-east-1";

impl Front {
    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.bucket {
            return Ok(());
        }
        Err(refused(S3ErrorCode::NoSuchBucket, format!("the only bucket here is {:?}", self.bucket)))
    }

    async fn list(&self, query: &Query, most: usize) -> S3Result<Page> {
        self.listings.page(query, most).await.map_err(|error| {
            log(&error, &query.prefix);
            s3_error(&error)
        })
    }
}

/// How many items are asked for.
fn most(max_keys: Option<i32>) -> S3Result<usize> {
    let asked = max_keys.map_or(Ok(MAX_KEYS), usize::try_from);
    let asked = asked.map_err(|_| refused(S3ErrorCode::InvalidArgument, "max-keys is negative"))?;
    Ok(asked.min(MAX_KEYS))
}

/// How names are written.
#[derive(Clone, Copy)]
struct Writer {
    url: bool,
}

impl Writer {
    fn new(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Self { url: false }),
            Some(EncodingType::URL) => Ok(Self { url: true }),
            Some(_) => Err(refused(S3ErrorCode::InvalidArgument, "the only encoding-type there is is url")),
        }
    }

    fn text(self, text: &str) -> String {
        if self.url { url_encoded(text) } else { text.to_owned() }
    }

    fn items(self, page: Page) -> (Vec<Object>, Vec<CommonPrefix>) {
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        for (key, item) in page.items {
            match item {
                Item::CommonPrefix => prefixes.push(CommonPrefix { prefix: Some(self.text(&key)) }),
                Item::File(file) => objects.push(Object {
                    key: Some(self.text(&key)),
                    size: Some(signed(file.size)),
                    e_tag: Some(etag(&file.etag)),
                    last_modified: Some(timestamp(file.modified_s)),
                    storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
                    ..Object::default()
                }),
            }
        }
        (objects, prefixes)
    }
}

/// An empty text means that there is none.
fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn size(number: usize) -> Option<i32> {
    i32::try_from(number).ok()
}

#[async_trait::async_trait]
impl S3 for Front {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let bucket = Bucket {
            name: Some(self.bucket.clone()),
            creation_date: Some(timestamp(self.started_ms / 1000)),
            ..Bucket::default()
        };
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(vec![bucket]), ..ListBucketsOutput::default() }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&req.input.bucket)?;
        let region = Some(REGION.to_owned());
        Ok(S3Response::new(HeadBucketOutput { bucket_region: region, ..HeadBucketOutput::default() }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.check_bucket(&req.input.bucket)?;
        // Of the region us-east-1 S3 says nothing.
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &req.input;
        self.check_bucket(&input.bucket)?;
        let (version, part) = (input.version_id.as_deref(), input.part_number);
        let answer = self.object(&Asked { key: &input.key, head: false, headers: &req.headers, version, part }).await?;
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(answer.length)),
            content_range: content_range(&answer),
            content_type: Some(answer.content_type),
            e_tag: Some(etag(&answer.etag)),
            last_modified: Some(timestamp(answer.modified_s.unwrap_or_default())),
            body: Some(self.blob(answer.body)),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &req.input;
        self.check_bucket(&input.bucket)?;
        let (version, part) = (input.version_id.as_deref(), input.part_number);
        let answer = self.object(&Asked { key: &input.key, head: true, headers: &req.headers, version, part }).await?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(answer.length)),
            content_type: Some(answer.content_type),
            e_tag: Some(etag(&answer.etag)),
            last_modified: Some(timestamp(answer.modified_s.unwrap_or_default())),
            ..HeadObjectOutput::default()
        }))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        self.check_bucket(&input.bucket)?;
        let (most, writer) = (most(input.max_keys)?, Writer::new(input.encoding_type.as_ref())?);
        let prefix = input.prefix.unwrap_or_default();
        let query = Query { prefix, delimiter: said(input.delimiter), marker: said(input.marker) };
        let page = self.list(&query, most).await?;
        let next_marker = page.next.as_deref().map(|next| writer.text(next));
        let (objects, prefixes) = writer.items(page);
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(writer.text(&query.prefix)),
            marker: Some(writer.text(query.marker.as_deref().unwrap_or_default())),
            delimiter: query.delimiter.as_deref().map(|delimiter| writer.text(delimiter)),
            max_keys: size(most),
            is_truncated: Some(next_marker.is_some()),
            next_marker,
            contents: Some(objects),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        self.check_bucket(&input.bucket)?;
        let (most, writer) = (most(input.max_keys)?, Writer::new(input.encoding_type.as_ref())?);
        let marker = match said(input.continuation_token.clone()) {
            Some(token) => Some(parse_token(&token).ok_or_else(|| {
                refused(S3ErrorCode::InvalidArgument, "the continuation-token is not one of this service's")
            })?),
            None => said(input.start_after.clone()),
        };
        let prefix = input.prefix.unwrap_or_default();
        let query = Query { prefix, delimiter: said(input.delimiter), marker };
        let page = self.list(&query, most).await?;
        let next = page.next.as_deref().map(token);
        let key_count = size(page.items.len());
        let (objects, prefixes) = writer.items(page);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(writer.text(&query.prefix)),
            delimiter: query.delimiter.as_deref().map(|delimiter| writer.text(delimiter)),
            start_after: input.start_after.as_deref().map(|after| writer.text(after)),
            continuation_token: input.continuation_token,
            max_keys: size(most),
            key_count,
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(objects),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }
}
