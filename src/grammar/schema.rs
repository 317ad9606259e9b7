//! JSON schemas: what of them is enforced, and how JSON is written.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Keywords that the specifications define and nobody enforces here.
const UNSUPPORTED: &[&str] = &[
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "extends",
    "disallow",
    "divisibleBy",
    // OpenAPI's, which changes what is allowed.
    "nullable",
];

/// Keywords whose values are schemas, by name or in a list.
const NAMED: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
const LISTED: &[&str] = &["anyOf", "oneOf", "allOf", "prefixItems"];
const SINGLE: &[&str] = &["items", "additionalItems", "additionalProperties"];

/// Blanks between the parts of JSON: a line end with a margin, or a space. Without a limit, small models write blanks
/// until nothing fits any more.
const BLANKS: &str = r"\n[ ]{0,12}|[ ]";

/// Schemas inside each other.
const DEEPEST: usize = 64;

fn at(place: &str, what: &str) -> Error {
    Error::Invalid(format!("the schema at {place}: {what}"))
}

/// Checks that everything in a schema is enforced.
///
/// # Errors
/// [`Error::Invalid`] with the place, as a JSON pointer behind `#`.
pub(super) fn check(schema: &Value) -> Result<()> {
    walk(schema, "#", 0)
}

fn walk(schema: &Value, place: &str, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(at(place, "schemas go too deep"));
    }
    let map = match schema {
        Value::Object(map) => map,
        Value::Bool(_) => return Ok(()),
        _ => return Err(at(place, "a schema must be an object or a truth value")),
    };
    if let Some(key) = map.keys().find(|k| UNSUPPORTED.contains(&k.as_str()) && !is_default(k, &map[k.as_str()])) {
        return Err(at(&format!("{place}/{key}"), &format!("the keyword {key:?} is not supported")));
    }
    if let Some(target) = map.get("$ref") {
        let local = target.as_str().is_some_and(|t| t.starts_with('#'));
        if !local {
            return Err(at(&format!("{place}/$ref"), "only references within the schema are followed"));
        }
    }
    for (key, value) in map {
        let place = format!("{place}/{}", key.replace('~', "~0").replace('/', "~1"));
        match (key.as_str(), value) {
            (k, Value::Object(named)) if NAMED.contains(&k) => {
                for (name, schema) in named {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    walk(schema, &format!("{place}/{name}"), depth + 1)?;
                }
            }
            (k, Value::Array(listed)) if LISTED.contains(&k) || k == "items" => {
                for (i, schema) in listed.iter().enumerate() {
                    walk(schema, &format!("{place}/{i}"), depth + 1)?;
                }
            }
            (k, value) if SINGLE.contains(&k) => walk(value, &place, depth + 1)?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether a keyword that is not supported asks for nothing.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "uniqueItems" | "nullable" => value == &Value::Bool(false),
        "unevaluatedItems" | "unevaluatedProperties" | "propertyNames" => value == &Value::Bool(true),
        _ => false,
    }
}

/// Takes out the keywords that are not supported and ask for nothing, at every level.
fn drop_defaults(map: &mut Map<String, Value>) {
    map.retain(|k, v| !(UNSUPPORTED.contains(&k.as_str()) && is_default(k, v)));
    let below = |key: &str| NAMED.contains(&key) || LISTED.contains(&key) || SINGLE.contains(&key);
    for (key, value) in map.iter_mut().filter(|(k, _)| below(k)) {
        let schemas: Vec<&mut Value> = match value {
            Value::Array(listed) => listed.iter_mut().collect(),
            Value::Object(named) if NAMED.contains(&key.as_str()) => named.values_mut().collect(),
            one => vec![one],
        };
        schemas.into_iter().filter_map(Value::as_object_mut).for_each(drop_defaults);
    }
}

/// A schema as a part of a Lark grammar.
///
/// # Errors
/// As [`check`].
pub(super) fn lark(schema: &Value) -> Result<String> {
    check(schema)?;
    let mut map = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => Map::new(),
        _ => return Err(at("#", "it allows nothing")),
    };
    drop_defaults(&mut map);
    map.insert("x-guidance".into(), json!({ "whitespace_flexible": true, "whitespace_pattern": BLANKS }));
    Ok(format!("%json {}", Value::Object(map)))
}

/// The schema of a property with the definitions that it may refer to.
pub(super) fn property(root: &Value, schema: &Value) -> Value {
    let mut out = schema.clone();
    if let Value::Object(map) = &mut out {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                map.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    out
}
