//! [`DataFingerprint`]: detects a data set that changed by mistake.

use std::fmt;

/// 64-bit FNV-1a: a hash of the numbers added so far.
///
/// Each step is a bijection, so the hash detects every change of a single number. It misses other
/// changes with probability 2⁻⁶⁴.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fnv1a(pub u64);

impl Default for Fnv1a {
    /// Returns the hash of no numbers.
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Adds a number. FNV-1a is defined on bytes. Adding up to 64 bits at once works as well and
    /// takes fewer steps.
    pub fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0100_0000_01b3);
    }
}

/// A fingerprint of a data set: the number of examples and a hash of their contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataFingerprint {
    /// The number of examples.
    pub count: usize,
    /// A hash of the examples' contents in order. It detects accidental changes, not deliberate
    /// ones.
    pub hash: u64,
}

impl DataFingerprint {
    /// Returns the fingerprint of `count` examples whose contents are `numbers`, hashed with FNV-1a
    /// 64 bits at a time.
    pub fn of_numbers(count: usize, numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut hash = Fnv1a::default();
        numbers.into_iter().for_each(|number| hash.add(number));
        Self { count, hash: hash.0 }
    }
}

impl fmt::Display for DataFingerprint {
    /// Writes `150 (hash 0123456789abcdef)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (hash {:016x})", self.count, self.hash)
    }
}
