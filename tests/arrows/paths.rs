//! Reads Rust sources as tokens and resolves the paths in them to the files that define what they name: `crate::`, `self::`,
//! `super::` and bare paths, `use` trees with their groups, globs and new names, and re-exports (followed to the definition).
//!
//! Methods and fields have no path, so they are not seen.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};

/// A module's path from the root of the crate: empty for `lib.rs`.
pub type ModulePath = Vec<String>;

/// What one file says of one module; a file with inline modules has several.
#[derive(Default)]
struct Module {
    file: String,
    /// Names of the items that the module defines.
    items: BTreeSet<String>,
    /// Names that `use` brings in, with the paths that they stand for.
    imports: BTreeMap<String, Vec<String>>,
    /// Modules that `use path::*` brings in.
    globs: Vec<Vec<String>>,
    /// Every path in the module's text, those of `use` included.
    paths: BTreeSet<Vec<String>>,
}

/// What a path stands for.
#[derive(Clone, Debug, PartialEq)]
enum Target {
    Module(ModulePath),
    Item(ModulePath, String),
}

/// One file names something in another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    pub from: String,
    /// The file whose module the path goes through last: where the item is defined, or what re-exports it from another room.
    pub named: String,
    /// The file that defines the item.
    pub to: String,
    /// The item that is named; empty where only the module is.
    pub item: String,
}

/// Whether the imports of a module are followed when a path goes through it.
type Follow<'a> = &'a dyn Fn(&Module) -> bool;

/// All modules of a crate.
pub struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// The module that a file holds: `a/b.rs` and `a/b/mod.rs` hold `a::b`, `lib.rs` the root.
pub fn module_of(file: &str) -> ModulePath {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(Into::into).collect();
    if path.last().is_some_and(|p| p == "mod" || (p == "lib" && path.len() == 1)) {
        path.pop();
    }
    path
}

impl Crate {
    /// Reads files, named by their paths below `src/`.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Crate {
        let mut all = Crate { modules: BTreeMap::from([(vec![], Module::default())]) };
        for (file, text) in files {
            let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{file}: {e}"));
            let at = module_of(file);
            all.modules.entry(at.clone()).or_default().file = file.into();
            all.walk(tokens, &at, true);
        }
        all
    }

    /// Collects the items, imports and paths of `tokens`, which stand in module `at`. Items count at the module's `top` only.
    fn walk(&mut self, tokens: TokenStream, at: &ModulePath, top: bool) {
        let t: Vec<TokenTree> = tokens.into_iter().collect();
        let mut i = 0;
        while i < t.len() {
            match &t[i] {
                // Attributes, doc comments among them.
                TokenTree::Punct(p) if p.as_char() == '#' => {
                    i += 1 + usize::from(is_punct(&t, i + 1, '!'));
                    i += usize::from(group(&t, i, Delimiter::Bracket).is_some());
                }
                TokenTree::Group(g) => {
                    self.walk(g.stream(), at, false);
                    i += 1;
                }
                TokenTree::Ident(_) => i = self.ident(&t, i, at, top),
                _ => i += 1,
            }
        }
    }

    /// Takes what begins with the identifier at `i`; returns where to go on.
    fn ident(&mut self, t: &[TokenTree], i: usize, at: &ModulePath, top: bool) -> usize {
        let word = name(&t[i]).unwrap_or_default();
        let field = is_punct_before(t, i, '.') && !(i > 1 && is_punct(t, i - 2, '.'));
        if field || is_punct_before(t, i, '\'') {
            return i + 1;
        }
        match word.as_str() {
            // `pub(crate)`, `pub(in super::x)`: how far it is seen is no use of it.
            "pub" => return i + 1 + usize::from(group(t, i + 1, Delimiter::Parenthesis).is_some()),
            "use" => {
                let end = (i..t.len()).find(|j| is_punct(t, *j, ';')).unwrap_or(t.len());
                self.use_tree(&t[i + 1..end], vec![], at);
                return end;
            }
            "mod" if top => {
                let inner = name(&t[i + 1]).unwrap_or_default();
                self.module(at).items.insert(inner.clone());
                let Some(body) = group(t, i + 2, Delimiter::Brace) else { return i + 2 };
                let path: ModulePath = at.iter().cloned().chain([inner]).collect();
                let file = self.module(at).file.clone();
                self.module(&path).file = file;
                self.walk(body, &path, true);
                return i + 3;
            }
            "macro_rules" => {
                let defined = t.get(i + 2).and_then(name).unwrap_or_default();
                self.module(at).items.insert(defined);
                return i + 3;
            }
            "struct" | "enum" | "union" | "trait" | "type" | "static" | "fn" | "const" if top => {
                let modifiers = ["fn", "unsafe", "extern", "async", "mut"];
                if let Some(n) = t.get(i + 1).and_then(name).filter(|n| !modifiers.contains(&n.as_str())) {
                    self.module(at).items.insert(n);
                    return i + 2;
                }
                return i + 1;
            }
            _ => {}
        }
        let (path, end) = path_from(t, i);
        self.module(at).paths.insert(path);
        end
    }

    /// A `use` tree, without the word itself and the semicolon.
    fn use_tree(&mut self, t: &[TokenTree], prefix: Vec<String>, at: &ModulePath) {
        let mut path = prefix;
        let mut i = 0;
        // `use ::name` is another crate.
        if is_punct(t, 0, ':') {
            return;
        }
        while i < t.len() {
            if let Some(inner) = group(t, i, Delimiter::Brace) {
                let inner: Vec<TokenTree> = inner.into_iter().collect();
                inner.split(|x| matches!(x, TokenTree::Punct(p) if p.as_char() == ',')).for_each(|branch| {
                    self.use_tree(branch, path.clone(), at);
                });
                return;
            }
            if is_punct(t, i, '*') {
                self.module(at).paths.insert(path.clone());
                self.module(at).globs.push(path);
                return;
            }
            match name(&t[i]) {
                Some(n) if n == "as" => {
                    let new = t.get(i + 1).and_then(name).unwrap_or_default();
                    return self.import(new, path, at);
                }
                // `{self, …}` is what stands before the brace.
                Some(n) if n == "self" && !path.is_empty() => {}
                Some(n) => path.push(n),
                None => {}
            }
            i += 1;
        }
        if let Some(last) = path.last() {
            self.import(last.clone(), path, at);
        }
    }

    fn import(&mut self, name: String, path: Vec<String>, at: &ModulePath) {
        self.module(at).paths.insert(path.clone());
        self.module(at).imports.insert(name, path);
    }

    fn module(&mut self, at: &ModulePath) -> &mut Module {
        self.modules.entry(at.clone()).or_default()
    }

    /// What `path` stands for in module `at`; `None` where it leaves the crate or is a local name. `depth` ends circles of
    /// imports.
    fn resolve(&self, at: &[String], path: &[String], depth: usize, follow: Follow<'_>) -> Option<Target> {
        let mut steps = path;
        let mut found = match path.first()?.as_str() {
            "Self" => return None,
            "crate" | "moeray" => Target::Module(vec![]),
            "self" | "super" => {
                let mut here = at.to_vec();
                while let Some("super") = steps.first().map(String::as_str) {
                    here.pop()?;
                    steps = &steps[1..];
                }
                // `self`, or the last `super`, is the first step.
                steps = &path[path.len() - steps.len() - usize::from(path[0] == "super")..];
                Target::Module(here)
            }
            first => self.lookup(at, first, depth, follow)?,
        };
        for step in &steps[1..] {
            let Target::Module(m) = &found else { break };
            found = self.lookup(m, step, depth, follow).unwrap_or_else(|| Target::Item(m.clone(), step.clone()));
        }
        Some(found)
    }

    /// What `name` stands for in module `at`.
    fn lookup(&self, at: &[String], name: &str, depth: usize, follow: Follow<'_>) -> Option<Target> {
        let depth = depth.checked_sub(1)?;
        let module = self.modules.get(at)?;
        let child: ModulePath = at.iter().cloned().chain([name.to_string()]).collect();
        if self.modules.contains_key(&child) {
            return Some(Target::Module(child));
        }
        if module.items.contains(name) {
            return Some(Target::Item(at.to_vec(), name.into()));
        }
        if !follow(module) {
            return None;
        }
        if let Some(path) = module.imports.get(name) {
            return self.resolve(at, path, depth, follow);
        }
        module.globs.iter().find_map(|glob| match self.resolve(at, glob, depth, follow)? {
            Target::Module(m) if m != at => self.lookup(&m, name, depth, follow),
            _ => None,
        })
    }

    /// What each file names in others. What another room re-exports is its own: `room` says which room a file is in, and
    /// `None` for the root, which is followed.
    pub fn arrows<'a>(&'a self, room: impl Fn(&'a str) -> Option<&'a str>) -> BTreeSet<Arrow> {
        let mut all = BTreeSet::new();
        for (at, module) in &self.modules {
            let own = |_: &Module| true;
            let facade = |m: &Module| {
                let there = self.modules.get(&module_of(&m.file)).and_then(|m| room(&m.file));
                there.is_none() || there == room(&module.file)
            };
            for path in &module.paths {
                let found = |follow: Follow<'_>| {
                    let target = self.resolve(at, path, 16, follow).or_else(|| self.macro_in_scope(at, path))?;
                    let (m, item) = match target {
                        Target::Module(m) => (m, String::new()),
                        Target::Item(m, item) => (m, item),
                    };
                    // A lone keyword (`self`) or module name says nothing yet.
                    let says = path.len() > 1 || !item.is_empty();
                    says.then(|| Some((self.modules.get(&m)?.file.clone(), item))).flatten()
                };
                let (Some((to, item)), Some((named, _))) = (found(&own), found(&facade)) else { continue };
                if to != module.file || named != module.file {
                    all.insert(Arrow { from: module.file.clone(), named, to, item });
                }
            }
        }
        all
    }

    /// A macro without a path is in scope where a module above defines it.
    fn macro_in_scope(&self, at: &[String], path: &[String]) -> Option<Target> {
        let name = path.last()?.strip_suffix('!')?;
        let above = (0..=at.len()).rev().map(|n| &at[..n]);
        let mut defined = above.filter(|m| self.modules.get(*m).is_some_and(|m| m.items.contains(name)));
        defined.next().map(|m| Target::Item(m.to_vec(), name.into()))
    }
}

/// The path that begins at `i`, and where it ends. A macro's call keeps its `!`, unless it has a path.
fn path_from(t: &[TokenTree], i: usize) -> (Vec<String>, usize) {
    let mut path = vec![name(&t[i]).unwrap_or_default()];
    let mut end = i + 1;
    while is_punct(t, end, ':') && is_punct(t, end + 1, ':') {
        let Some(n) = t.get(end + 2).and_then(name) else { break };
        path.push(n);
        end += 3;
    }
    let call = is_punct(t, end, '!') && matches!(t.get(end + 1), Some(TokenTree::Group(_)));
    if path.len() == 1 && call {
        path[0].push('!');
    }
    (path, end)
}

fn name(t: &TokenTree) -> Option<String> {
    match t {
        TokenTree::Ident(n) => Some(n.to_string().trim_start_matches("r#").into()),
        _ => None,
    }
}

fn is_punct(t: &[TokenTree], i: usize, c: char) -> bool {
    matches!(t.get(i), Some(TokenTree::Punct(p)) if p.as_char() == c)
}

fn is_punct_before(t: &[TokenTree], i: usize, c: char) -> bool {
    i > 0 && is_punct(t, i - 1, c)
}

fn group(t: &[TokenTree], i: usize, delimiter: Delimiter) -> Option<TokenStream> {
    match t.get(i) {
        Some(TokenTree::Group(g)) if g.delimiter() == delimiter => Some(g.stream()),
        _ => None,
    }
}
