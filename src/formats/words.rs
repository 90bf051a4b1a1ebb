//! What metadata of our own files says, as `key=value` words: here a configuration.

use std::str::FromStr;

use crate::error::{Error, Result, quote};
use crate::spec::config::{Activation, Bias, Direction, GruConfig, Reset, Update};
use crate::spec::head::Readout;

/// The key that holds a configuration.
pub(super) const KEY: &str = "gru_wgpu.config";

/// What [`write`] makes is shorter.
const LONGEST: usize = 1000;

const DIRECTIONS: &[(Direction, &str)] =
    &[(Direction::Forward, "forward"), (Direction::Reverse, "reverse"), (Direction::Both, "both")];
const RESETS: &[(Reset, &str)] = &[(Reset::Before, "before"), (Reset::After, "after")];
const UPDATES: &[(Update, &str)] = &[(Update::Overwrites, "overwrites"), (Update::Keeps, "keeps")];
const BIASES: &[(Bias, &str)] = &[(Bias::None, "none"), (Bias::One, "one"), (Bias::Two, "two")];
const ACTIVATIONS: &[(Activation, &str)] = &[
    (Activation::Sigmoid, "sigmoid"),
    (Activation::Tanh, "tanh"),
    (Activation::Relu, "relu"),
    (Activation::HardSigmoid, "hard-sigmoid"),
    (Activation::Identity, "identity"),
];

const OVERS: &[(Readout, &str)] =
    &[(Readout::EveryStep, "every-step"), (Readout::LastState, "last")];

/// `input=3 hidden=5 layers=1 direction=forward reset=after update=keeps bias=two gate=sigmoid
/// candidate=tanh dropout=0 zoneout=0`, and where there is a head what it reads, `head=last`.
pub(crate) fn write(config: &GruConfig, readout: Option<Readout>) -> String {
    let head =
        readout.map_or_else(String::new, |readout| format!(" head={}", word(OVERS, readout)));
    format!(
        "input={} hidden={} layers={} direction={} reset={} update={} bias={} gate={} candidate={} \
         dropout={} zoneout={}{head}",
        config.input_size,
        config.hidden_size,
        config.layers,
        word(DIRECTIONS, config.direction),
        word(RESETS, config.reset),
        word(UPDATES, config.update),
        word(BIASES, config.bias),
        word(ACTIVATIONS, config.gate_activation),
        word(ACTIVATIONS, config.candidate_activation),
        config.dropout,
        config.zoneout,
    )
}

/// Back from [`write`]. Every word must be there, once, and known.
pub(crate) fn read(words: &str) -> Result<(GruConfig, Option<Readout>)> {
    let mut pairs = Pairs::new(KEY, words)?;
    let readout = if pairs.has("head") { Some(pairs.named("head", OVERS)?) } else { None };
    let config = GruConfig::new(pairs.number("input")?, pairs.number("hidden")?)
        .with_layers(pairs.number("layers")?)
        .with_direction(pairs.named("direction", DIRECTIONS)?)
        .with_reset(pairs.named("reset", RESETS)?)
        .with_update(pairs.named("update", UPDATES)?)
        .with_bias(pairs.named("bias", BIASES)?)
        .with_activations(pairs.named("gate", ACTIVATIONS)?, pairs.named("candidate", ACTIVATIONS)?)
        .with_dropout(pairs.number("dropout")?)
        .with_zoneout(pairs.number("zoneout")?);
    pairs.end()?;
    config.validate()?;
    Ok((config, readout))
}

pub(crate) fn word<V: PartialEq>(vocabulary: &[(V, &'static str)], value: V) -> &'static str {
    let found = vocabulary.iter().find(|(known, _)| *known == value);
    found.expect("every value has its word").1
}

/// `key=value` words, taken one by one.
pub(crate) struct Pairs<'a> {
    /// What of the metadata they are, for messages.
    within: &'static str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Pairs<'a> {
    pub fn new(within: &'static str, words: &'a str) -> Result<Self> {
        let mut all = Self { within, pairs: Vec::new() };
        if words.len() > LONGEST {
            return Err(all.wrong(format!("has {} bytes", words.len())));
        }
        for word in words.split_whitespace() {
            let pair = word.split_once('=');
            let (key, value) =
                pair.ok_or_else(|| all.wrong(format!("has the word {}", quote(word))))?;
            if all.has(key) {
                return Err(all.wrong(format!("has {} twice", quote(key))));
            }
            all.pairs.push((key, value));
        }
        Ok(all)
    }

    pub fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|&(known, _)| known == key)
    }

    fn take(&mut self, key: &str) -> Result<&'a str> {
        let at = self.pairs.iter().position(|&(known, _)| known == key);
        let at = at.ok_or_else(|| self.wrong(format!("lacks `{key}`")))?;
        Ok(self.pairs.swap_remove(at).1)
    }

    pub fn number<T: FromStr>(&mut self, key: &str) -> Result<T> {
        let value = self.take(key)?;
        value.parse().map_err(|_| self.unknown(key, value))
    }

    /// A number, or the word `none`.
    #[cfg(feature = "safetensors")]
    pub fn option<T: FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        match self.take(key)? {
            "none" => Ok(None),
            value => value.parse().map(Some).map_err(|_| self.unknown(key, value)),
        }
    }

    pub fn named<V: Copy>(&mut self, key: &str, vocabulary: &[(V, &str)]) -> Result<V> {
        let value = self.take(key)?;
        let found = vocabulary.iter().find(|&&(_, word)| word == value);
        found.map(|&(known, _)| known).ok_or_else(|| self.unknown(key, value))
    }

    pub fn end(&self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.wrong(format!("has {}, which is unknown", quote(key)))),
        }
    }

    fn unknown(&self, key: &str, value: &str) -> Error {
        self.wrong(format!("has {} for `{key}`", quote(value)))
    }

    fn wrong(&self, what: String) -> Error {
        Error::Format(format!("its metadata {} {what}", self.within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_comes_back() {
        for config in GruConfig::all_variants(3, 5) {
            for &(direction, _) in DIRECTIONS {
                for gate in Activation::ALL {
                    let config = config.clone().with_layers(2).with_direction(direction);
                    let config = config.with_activations(gate, gate).with_dropout(0.1);
                    for readout in [None, Some(Readout::LastState), Some(Readout::EveryStep)] {
                        let words = write(&config, readout);
                        assert!(words.len() < LONGEST);
                        assert_eq!(read(&words).unwrap(), (config.clone(), readout), "{words}");
                    }
                }
            }
        }
    }

    #[test]
    fn other_words_are_refused() {
        let words = write(&GruConfig::new(3, 5), Some(Readout::LastState));
        for (from, to, expected) in [
            ("input=3", "", "lacks `input`"),
            ("input=3", "input=3 input=3", "has `input` twice"),
            ("input=3", "input=-3", "has `-3` for `input`"),
            ("reset=before", "reset=never", "has `never` for `reset`"),
            ("reset=before", "reset", "has the word `reset`"),
            ("dropout=0", "dropout=0 more=1", "has `more`, which is unknown"),
            ("head=last", "head=first", "has `first` for `head`"),
            ("input=3", "input=0", "input size I is 0"),
            ("dropout=0", "dropout=NaN", "dropout is NaN"),
            ("layers=1", "layers=18446744073709551615", "overflows"),
            ("input=3", &"x".repeat(1000), "bytes"),
        ] {
            let error = read(&words.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
