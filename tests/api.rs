//! What the public types promise to threads, as the library's page says.

use moeray::{
    Error,
    generate::{CancelToken, Generation},
    gpu::Gpu,
    session::{Batch, Model, Session},
    tokenizer::Tokenizer,
};

/// Compiles for types that may go to another thread.
fn sent<T: Send>() {}

/// Compiles for types that several threads may use at once.
fn shared<T: Sync>() {}

/// Compiles for types that one thread at a time uses: for the others it is not clear which of the two is meant.
macro_rules! not_shared {
    ($($type:ty),*) => {$({
        trait OneThread<Which> {
            fn at_a_time() {}
        }
        impl<T: ?Sized> OneThread<()> for T {}
        impl<T: ?Sized + Sync> OneThread<u8> for T {}
        <$type as OneThread<_>>::at_a_time();
    })*};
}

#[test]
fn what_threads_may_do() {
    sent::<Model>();
    shared::<Model>();
    sent::<Gpu>();
    shared::<Gpu>();
    sent::<Tokenizer>();
    shared::<Tokenizer>();
    sent::<Error>();
    shared::<Error>();
    sent::<CancelToken>();
    shared::<CancelToken>();
    sent::<Session>();
    sent::<Batch>();
    sent::<Generation<Session>>();
    sent::<Generation<&'static mut Session>>();
    not_shared!(Session, Batch, Generation<Session>);
}
