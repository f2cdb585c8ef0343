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
/// The deepest nesting of fields and fragments. Tools that ask for the schema go 14 deep.
pub(super) const MAX_DEPTH: usize = 16;

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
    /// Fields and depth of fragments that were weighed already.
    fragments: HashMap<&'a str, (usize, usize)>,
}

impl<'a> Scale<'a> {
    /// Fields of a selection, and how deep it goes. `depth` is where it stands.
    fn weigh(&mut self, set: &'a SelectionSet, depth: usize) -> Result<(usize, usize), String> {
        let (mut fields, mut deepest) = (0_usize, 0);
        for item in &set.items {
            let (below, deep) = match &item.node {
                Selection::Field(field) => {
                    let (below, deep) = self.below(&field.node.selection_set.node, depth)?;
                    (below + 1, deep)
                }
                Selection::InlineFragment(fragment) => self.below(&fragment.node.selection_set.node, depth)?,
                Selection::FragmentSpread(spread) => self.fragment(&spread.node.fragment_name.node, depth)?,
            };
            fields = fields.saturating_add(below);
            deepest = deepest.max(deep);
            if fields > MAX_FIELDS {
                return Err(format!("the query has more than {MAX_FIELDS} fields once its fragments are in place"));
            }
        }
        if depth + deepest > MAX_DEPTH {
            return Err(too_deep());
        }
        Ok((fields, deepest + 1))
    }

    fn below(&mut self, set: &'a SelectionSet, depth: usize) -> Result<(usize, usize), String> {
        if set.items.is_empty() {
            return Ok((0, 0));
        }
        // Also the end of fragments that contain themselves.
        if depth >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.weigh(set, depth + 1)
    }

    fn fragment(&mut self, name: &str, depth: usize) -> Result<(usize, usize), String> {
        // One that is missing is told by the validation.
        let Some((name, fragment)) = self.document.fragments.get_key_value(name) else { return Ok((0, 0)) };
        if let Some(known) = self.fragments.get(name.as_str()) {
            return if depth + known.1 > MAX_DEPTH { Err(too_deep()) } else { Ok(*known) };
        }
        let weight = self.below(&fragment.node.selection_set.node, depth)?;
        self.fragments.insert(name.as_str(), weight);
        Ok(weight)
    }
}

fn too_deep() -> String {
    format!("the query nests more than {MAX_DEPTH} levels deep, or a fragment contains itself")
}
