//! [`OncePerKey`]: values that are made once per key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// The value of a key, or `None` until it is made. Locked while it is made.
type Slot<V> = Arc<Mutex<Option<V>>>;

/// Values by key. A thread that asks for a value that another thread is making waits for it.
#[derive(Debug)]
pub(crate) struct OncePerKey<K, V>(Mutex<HashMap<K, Slot<V>>>);

impl<K, V> Default for OncePerKey<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> OncePerKey<K, V> {
    fn slot(&self, key: &K) -> Slot<V> {
        Arc::clone(lock(&self.0).entry(key.clone()).or_default())
    }

    /// Returns the value of `key`, if it has been made.
    pub fn get(&self, key: &K) -> Option<V> {
        let slot = self.slot(key);
        lock(&slot).clone()
    }

    /// Returns the value of `key`. Calls `make` if there is none yet. After a failure the next call
    /// tries again.
    ///
    /// Other keys are not locked meanwhile, so `make` may ask for values of another map.
    pub fn get_or_make<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let slot = self.slot(key);
        let mut slot = lock(&slot);
        if let Some(value) = &*slot {
            return Ok(value.clone());
        }
        let made = make()?;
        *slot = Some(made.clone());
        Ok(made)
    }

    /// Returns the keys of the values that have been made.
    #[cfg(test)]
    pub fn keys(&self) -> Vec<K> {
        let slots = lock(&self.0);
        let made = slots.iter().filter(|(_, slot)| lock(slot).is_some());
        made.map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn threads_that_ask_at_the_same_time_get_one_value() {
        let (values, made) = (OncePerKey::default(), AtomicUsize::new(0));
        let make = || -> Result<usize, ()> {
            // Long enough for the other threads to ask meanwhile.
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok(made.fetch_add(1, Ordering::Relaxed))
        };
        std::thread::scope(|scope| {
            let ask = || values.get_or_make(&"key", make).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 0));
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_failure_is_tried_again() {
        let values = OncePerKey::default();
        assert_eq!(values.get_or_make(&1, || Err("no memory")), Err("no memory"));
        assert_eq!((values.get(&1), values.keys()), (None, vec![]));
        assert_eq!(values.get_or_make(&1, || Ok::<_, &str>(7)), Ok(7));
        assert_eq!(values.get_or_make(&1, || Err("not called")), Ok(7));
        assert_eq!((values.get(&1), values.keys()), (Some(7), vec![1]));
    }
}
