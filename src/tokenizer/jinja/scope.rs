//! Variables by name: a chain of scopes.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// A scope. Clones are the same scope.
#[derive(Debug)]
pub(in crate::tokenizer) struct Scope<V>(Rc<Inner<V>>);

#[derive(Debug)]
struct Inner<V> {
    variables: RefCell<HashMap<String, V>>,
    parent: Option<Scope<V>>,
}

impl<V> Clone for Scope<V> {
    fn clone(&self) -> Self {
        Scope(self.0.clone())
    }
}

impl<V: Clone> Scope<V> {
    /// The outermost.
    pub fn new(variables: HashMap<String, V>) -> Self {
        Scope(Rc::new(Inner { variables: RefCell::new(variables), parent: None }))
    }

    /// One inside this.
    pub fn inner(&self) -> Self {
        Scope(Rc::new(Inner { variables: RefCell::default(), parent: Some(self.clone()) }))
    }

    pub fn get(&self, name: &str) -> Option<V> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.0.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.0.parent.as_ref()?;
        }
    }

    pub fn set(&self, name: &str, value: V) {
        self.0.variables.borrow_mut().insert(name.to_owned(), value);
    }

    /// Forgets all variables: a macro and the scope that holds it refer to each other.
    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.0.variables.borrow_mut());
        drop(gone);
    }
}
