//! Variables: a chain of scopes.

use super::value::Value;
use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// A scope. Clones are the same scope.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct Scope(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    variables: RefCell<HashMap<String, Value>>,
    parent: Option<Scope>,
}

impl Scope {
    /// The outermost.
    pub fn new(variables: HashMap<String, Value>) -> Scope {
        Scope(Rc::new(Inner { variables: RefCell::new(variables), parent: None }))
    }

    /// One inside this.
    pub fn inner(&self) -> Scope {
        Scope(Rc::new(Inner { variables: RefCell::default(), parent: Some(self.clone()) }))
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.0.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.0.parent.as_ref()?;
        }
    }

    pub fn set(&self, name: &str, value: Value) {
        self.0.variables.borrow_mut().insert(name.to_owned(), value);
    }

    /// Forgets all variables: a macro and the scope that holds it refer to each other.
    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.0.variables.borrow_mut());
        drop(gone);
    }
}
