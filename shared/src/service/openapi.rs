//! Routes together with their description: what is served is described, and the other way round, because one line adds
//! both. The document is served at `/openapi.json`.
//!
//! ```ignore
//! Routes::new().add(files::__path_get, files::get).schema::<File>().with_state(state).finish("DES", "What it is.")
//! ```
//! `__path_get` is what `#[utoipa::path(...)]` on the handler `get` makes; its path is written as axum reads it.

use std::collections::BTreeMap;
use std::fmt;

use axum::Router;
use axum::extract::State;
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use bytes::Bytes;
use utoipa::ToSchema;
use utoipa::openapi::path::{HttpMethod, ParameterIn};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder, response,
};

use super::Problem;

/// The media type of problems.
const PROBLEM_TYPE: &str = "application/problem+json";

/// Routes with their description; `S` is the state that their handlers still need.
pub struct Routes<S = ()> {
    paths: BTreeMap<String, Methods<S>>,
    document: OpenApi,
}

struct Methods<S> {
    router: MethodRouter<S>,
    /// As in `Allow`.
    names: Vec<&'static str>,
}

impl<S> fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.paths.iter().map(|(path, methods)| (path, &methods.names))).finish()
    }
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// No routes.
    pub fn new() -> Self {
        Self { paths: BTreeMap::new(), document: OpenApiBuilder::new().build() }
    }

    /// Adds a handler under the path and the methods of its description.
    #[must_use]
    pub fn add<P, H, T>(mut self, _described: P, handler: H) -> Self
    where
        P: utoipa::Path,
        H: Handler<T, S>,
        T: 'static,
    {
        let (path, methods) = (P::path(), P::methods());
        let shown = path.replace("{*", "{");
        let entry = self.paths.entry(path);
        let entry = entry.or_insert_with(|| Methods { router: MethodRouter::new(), names: Vec::new() });
        let known: Vec<(MethodFilter, &'static str)> = methods.iter().map(known).collect();
        entry.names.extend(known.iter().map(|(_, name)| name));
        if let Some(filter) = known.into_iter().map(|(filter, _)| filter).reduce(MethodFilter::or) {
            entry.router = std::mem::take(&mut entry.router).on(filter, handler);
        }
        self.document.paths.add_path_operation(shown, methods, P::operation());
        self
    }

    /// Answers `path` also as `like` is answered, for a path that would else lead elsewhere because of what is added to it.
    ///
    /// # Panics
    /// When `like` was not added before.
    #[must_use]
    pub fn also(mut self, path: &str, like: &str) -> Self {
        let methods = self.paths.get(like).unwrap_or_else(|| panic!("{like} is no route"));
        let methods = Methods { router: methods.router.clone(), names: methods.names.clone() };
        assert!(self.paths.insert(path.to_owned(), methods).is_none(), "{path} is there twice");
        let mut item = self.document.paths.paths[&like.replace("{*", "{")].clone();
        for operation in [&mut item.get, &mut item.head, &mut item.delete, &mut item.post].into_iter().flatten() {
            operation.operation_id = operation.operation_id.take().map(|id| format!("{id}{}", path.replace('/', "_")));
            // Its path has none.
            operation.parameters.iter_mut().for_each(|all| all.retain(|one| one.parameter_in != ParameterIn::Path));
        }
        self.document.paths.paths.insert(path.to_owned(), item);
        self
    }

    /// Adds a type that descriptions refer to, with those it refers to.
    #[must_use]
    pub fn schema<T: ToSchema>(mut self) -> Self {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        self.document.components.get_or_insert_default().schemas.extend(schemas);
        self
    }

    /// Adds all of `other`.
    ///
    /// # Panics
    /// When both have the same path: what is meant then is not clear.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (path, methods) in other.paths {
            assert!(self.paths.insert(path.clone(), methods).is_none(), "{path} is there twice");
        }
        self.document.merge(other.document);
        self
    }

    /// Gives the handlers their state.
    pub fn with_state<S2: Clone + Send + Sync + 'static>(self, state: S) -> Routes<S2> {
        let given = |(path, methods): (String, Methods<S>)| {
            let router = methods.router.with_state(state.clone());
            (path, Methods { router, names: methods.names })
        };
        Routes { paths: self.paths.into_iter().map(given).collect(), document: self.document }
    }

    /// Every path as axum reads it, with its methods as in `Allow`.
    pub fn listed(&self) -> Vec<(String, Vec<&'static str>)> {
        self.paths.iter().map(|(path, methods)| (path.clone(), methods.names.clone())).collect()
    }

    /// The router and the description apart, for who has to put a layer around the one. Other methods than those that were
    /// added are answered with 405 and `Allow`, OPTIONS with 204 and `Allow`.
    pub fn into_parts(self) -> (Router<S>, OpenApi) {
        let mut router = Router::new();
        for (path, methods) in self.paths {
            let allow = allow(&methods.names);
            let other = move |method: Method| async move { other_method(&method, allow) };
            router = router.route(&path, methods.router.fallback(other));
        }
        (router, self.document)
    }
}

impl Routes<()> {
    /// The router, with the document beside everything else.
    pub fn finish(self, title: &str, about: &str) -> Router {
        let (router, document) = self.into_parts();
        router.merge(document_route(document, title, about))
    }
}

/// `/openapi.json` of a whole service: `title` names it, `about` says in a sentence what it is.
pub fn document_route(described: OpenApi, title: &str, about: &str) -> Router {
    let own = Routes::new().add(__path_document, document).schema::<Problem>();
    let mut whole = own.document.clone();
    whole.merge(described);
    let info = InfoBuilder::new().title(title).version(env!("CARGO_PKG_VERSION")).description(Some(about));
    whole.info = info.license(Some(utoipa::openapi::License::new("Apache-2.0"))).build();
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    let components: &mut Components = whole.components.get_or_insert_default();
    components.add_security_scheme("api_key", key);
    let json = whole.to_json().expect("a document always encodes");
    own.with_state(Bytes::from(json)).into_parts().0
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "service",
    responses((status = 200, description = "This document, OpenAPI 3.1.", content_type = "application/json", body = Object))
)]
async fn document(State(json): State<Bytes>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
}

/// Descriptions of the problems that a handler answers with: status, and when that is so.
pub fn problems(list: &[(StatusCode, &str)]) -> BTreeMap<String, RefOr<response::Response>> {
    let described = |(status, when): &(StatusCode, &str)| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
        let response = ResponseBuilder::new().description(*when).content(PROBLEM_TYPE, content).build();
        (status.as_str().to_owned(), RefOr::T(response))
    };
    list.iter().map(described).collect()
}

/// `Allow`: what was added, HEAD where there is GET, and OPTIONS.
fn allow(names: &[&'static str]) -> HeaderValue {
    let mut all = names.to_vec();
    if let Some(get) = names.iter().position(|name| *name == "GET")
        && !names.contains(&"HEAD")
    {
        all.insert(get + 1, "HEAD");
    }
    all.push("OPTIONS");
    HeaderValue::try_from(all.join(", ")).expect("names of methods are a header value")
}

fn other_method(method: &Method, allow: HeaderValue) -> Response {
    let mut response = if method == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let detail = format!("the method {method} is not possible here; {} are", allow.to_str().unwrap_or_default());
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail).into_response()
    };
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

fn known(method: &HttpMethod) -> (MethodFilter, &'static str) {
    match method {
        HttpMethod::Get => (MethodFilter::GET, "GET"),
        HttpMethod::Post => (MethodFilter::POST, "POST"),
        HttpMethod::Put => (MethodFilter::PUT, "PUT"),
        HttpMethod::Delete => (MethodFilter::DELETE, "DELETE"),
        HttpMethod::Options => (MethodFilter::OPTIONS, "OPTIONS"),
        HttpMethod::Head => (MethodFilter::HEAD, "HEAD"),
        HttpMethod::Patch => (MethodFilter::PATCH, "PATCH"),
        HttpMethod::Trace => (MethodFilter::TRACE, "TRACE"),
    }
}
