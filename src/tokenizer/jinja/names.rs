//! The names of Python's methods and of Jinja's filters and tests, apart from what they do.

use super::value::{SeqKind, Value};

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const LIST: &[&str] = &["count", "index", "copy"];
const LIST_CHANGES: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT: &[&str] = &["get", "items", "keys", "values", "copy", "fromkeys"];
const DICT_CHANGES: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const NUMBER: &[&str] = &["is_integer", "bit_length", "conjugate", "as_integer_ratio"];

/// Whether a value has this method.
pub(super) fn is_method(value: &Value, name: &str) -> bool {
    let (own, changes): (&[&str], &[&str]) = match value {
        Value::Str(_) => (STR, &[]),
        Value::Seq(SeqKind::List, _) => (LIST, LIST_CHANGES),
        Value::Seq(SeqKind::Tuple | SeqKind::Range { .. }, _) => (&LIST[..2], &[]),
        Value::Dict(_) => (DICT, DICT_CHANGES),
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => (NUMBER, &[]),
        Value::Loop(_) => (&["cycle", "changed"], &[]),
        _ => (&[], &[]),
    };
    own.contains(&name) || changes.contains(&name)
}

/// Filters over single values.
pub(super) const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "capitalize",
    "center",
    "d",
    "default",
    "e",
    "escape",
    "filesizeformat",
    "float",
    "forceescape",
    "format",
    "indent",
    "int",
    "lower",
    "pprint",
    "replace",
    "round",
    "safe",
    "string",
    "striptags",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Filters over sequences.
pub(super) const SEQUENCE_FILTERS: &[&str] = &[
    "batch",
    "count",
    "dictsort",
    "first",
    "groupby",
    "items",
    "join",
    "last",
    "length",
    "list",
    "map",
    "max",
    "min",
    "random",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
];

/// Tests.
pub(super) const TESTS: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Whether there is such a filter.
pub(super) fn is_filter(name: &str) -> bool {
    FILTERS.contains(&name) || SEQUENCE_FILTERS.contains(&name)
}
