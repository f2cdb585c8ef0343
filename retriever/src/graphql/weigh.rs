//! What a query weighs before it is run, or even validated.
//!
//! The library walks through fragments wherever they are spread, so thirty fragments that each spread the next one twice
//! are a thousand million steps of validation; and its parser goes down once for each opening brace. Both are bounded
//! here, in time that grows with the length of the text alone.

use std::collections::HashMap;

use async_graphql::parser::types::{ExecutableDocument, Selection, SelectionSet};

/// The longest query, in bytes. Lists of files belong into variables.
const MAX_QUERY_BYTES: usize = 64 << 10;
/// The most braces, brackets and parentheses: no text nests deeper than it opens.
const MAX_OPENED: usize = 1000;
/// The most fields after fragments were put in place.
const MAX_FIELDS: usize = 1000;
/// The deepest nesting of fields and fragments. Tools that ask for the schema go 18 deep.
pub(super) const MAX_DEPTH: usize = 20;
/// The lists of the schema's own description, and how many of them may stand inside each other: types have fields,
/// fields have types. Tools go as far as types, fields, args.
const LISTS: [&str; 7] = ["types", "fields", "args", "inputFields", "interfaces", "possibleTypes", "enumValues"];
const MAX_LISTS: usize = 3;

/// Looks at the text.
pub(super) fn check_text(query: &str) -> Result<(), String> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(format!("the query has {} bytes; at most {MAX_QUERY_BYTES} are read", query.len()));
    }
    let opened = query.bytes().filter(|byte| matches!(byte, b'{' | b'[' | b'(')).count();
    if opened > MAX_OPENED {
        return Err(format!(
            "the query opens {opened} braces, brackets and parentheses; at most {MAX_OPENED} are read"
        ));
    }
    Ok(())
}

/// Counts the fields of every operation.
pub(super) fn check_document(document: &ExecutableDocument) -> Result<(), String> {
    let mut scale = Scale { document, fragments: HashMap::new() };
    for (_, operation) in document.operations.iter() {
        scale.weigh(&operation.node.selection_set.node, 1)?;
    }
    Ok(())
}

struct Scale<'a> {
    document: &'a ExecutableDocument,
    /// Fragments that were weighed already.
    fragments: HashMap<&'a str, Weight>,
}

/// What a selection comes to.
#[derive(Clone, Copy, Default)]
struct Weight {
    fields: usize,
    /// Levels, its own included.
    depth: usize,
    /// Lists of the schema inside each other.
    lists: usize,
}

impl<'a> Scale<'a> {
    /// `depth` is the level the selection stands on.
    fn weigh(&mut self, set: &'a SelectionSet, depth: usize) -> Result<Weight, String> {
        if set.items.is_empty() {
            return Ok(Weight::default());
        }
        // Also the end of fragments that contain themselves.
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let mut whole = Weight::default();
        for item in &set.items {
            let part = match &item.node {
                Selection::Field(field) => {
                    let below = self.weigh(&field.node.selection_set.node, depth + 1)?;
                    let list = usize::from(LISTS.contains(&field.node.name.node.as_str()));
                    Weight { fields: below.fields + 1, lists: below.lists + list, ..below }
                }
                Selection::InlineFragment(fragment) => self.weigh(&fragment.node.selection_set.node, depth + 1)?,
                Selection::FragmentSpread(spread) => self.fragment(&spread.node.fragment_name.node, depth + 1)?,
            };
            whole.fields += part.fields;
            whole.depth = whole.depth.max(part.depth);
            whole.lists = whole.lists.max(part.lists);
            if whole.fields > MAX_FIELDS {
                return Err(format!("the query has more than {MAX_FIELDS} fields once its fragments are in place"));
            }
            if whole.lists > MAX_LISTS {
                return Err(format!("the query nests more than {MAX_LISTS} lists of the schema's description"));
            }
        }
        Ok(Weight { depth: whole.depth + 1, ..whole })
    }

    /// A fragment that is spread on this level.
    fn fragment(&mut self, name: &str, depth: usize) -> Result<Weight, String> {
        // One that is missing is told by the validation.
        let Some((name, fragment)) = self.document.fragments.get_key_value(name) else { return Ok(Weight::default()) };
        let weight = match self.fragments.get(name.as_str()) {
            Some(known) => *known,
            None => self.weigh(&fragment.node.selection_set.node, depth)?,
        };
        self.fragments.insert(name.as_str(), weight);
        // It may have been weighed on a higher level.
        if depth + weight.depth > MAX_DEPTH + 1 { Err(too_deep()) } else { Ok(weight) }
    }
}

fn too_deep() -> String {
    format!("the query nests more than {MAX_DEPTH} levels deep, or a fragment contains itself")
}
