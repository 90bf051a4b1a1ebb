//! Fingerprints of data: a change made by mistake is seen by them.

use std::fmt;

/// FNV-1a of 64 bits: a hash of the numbers added so far. Each step is one to one, so no change
/// within a single number goes unseen; of other changes one in 2⁶⁴.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fnv1a(pub u64);

impl Default for Fnv1a {
    /// Of nothing.
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Adds a number: a byte, as FNV-1a has it, or one of more bits, which is as good and takes
    /// fewer steps.
    pub fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0100_0000_01b3);
    }
}

/// What a set of examples is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataFingerprint {
    /// How many there are.
    pub count: usize,
    /// Of all that they hold, in their order: enough to tell a change made by mistake.
    pub hash: u64,
}

impl DataFingerprint {
    /// That of `count` examples which these numbers tell from any others: FNV-1a over 64 bits at a
    /// time.
    pub fn of_numbers(count: usize, numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut hash = Fnv1a::default();
        numbers.into_iter().for_each(|number| hash.add(number));
        Self { count, hash: hash.0 }
    }
}

impl fmt::Display for DataFingerprint {
    /// `150 of hash 0123456789abcdef`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of hash {:016x}", self.count, self.hash)
    }
}
