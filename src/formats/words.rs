//! A configuration as words, for the metadata of our own files.

use std::str::FromStr;

use crate::config::{Activation, Bias, Direction, GruConfig, Reset, Update};
use crate::error::{Error, Result, quote};

/// The key that holds them.
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

/// `input=3 hidden=5 layers=1 direction=forward reset=after update=keeps bias=two gate=sigmoid
/// candidate=tanh dropout=0 zoneout=0`
pub(super) fn write(config: &GruConfig) -> String {
    format!(
        "input={} hidden={} layers={} direction={} reset={} update={} bias={} gate={} candidate={} \
         dropout={} zoneout={}",
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
pub(super) fn read(words: &str) -> Result<GruConfig> {
    let mut pairs = Pairs::new(words)?;
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
    Ok(config)
}

fn word<V: PartialEq>(vocabulary: &[(V, &'static str)], value: V) -> &'static str {
    let found = vocabulary.iter().find(|(known, _)| *known == value);
    found.expect("every value has its word").1
}

/// `key=value` words, taken one by one.
struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Pairs<'a> {
    fn new(words: &'a str) -> Result<Self> {
        if words.len() > LONGEST {
            return Err(wrong(format!("has {} bytes", words.len())));
        }
        let mut pairs = Vec::new();
        for word in words.split_whitespace() {
            let pair = word.split_once('=');
            let (key, value) =
                pair.ok_or_else(|| wrong(format!("has the word {}", quote(word))))?;
            if pairs.iter().any(|&(known, _)| known == key) {
                return Err(wrong(format!("has {} twice", quote(key))));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, key: &str) -> Result<&'a str> {
        let at = self.0.iter().position(|&(known, _)| known == key);
        let at = at.ok_or_else(|| wrong(format!("lacks `{key}`")))?;
        Ok(self.0.swap_remove(at).1)
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Result<T> {
        let value = self.take(key)?;
        value.parse().map_err(|_| wrong(format!("has {} for `{key}`", quote(value))))
    }

    fn named<V: Copy>(&mut self, key: &str, vocabulary: &[(V, &str)]) -> Result<V> {
        let value = self.take(key)?;
        let found = vocabulary.iter().find(|&&(_, word)| word == value);
        let found = found.ok_or_else(|| wrong(format!("has {} for `{key}`", quote(value))))?;
        Ok(found.0)
    }

    fn end(&self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(wrong(format!("has {}, which is unknown", quote(key)))),
        }
    }
}

fn wrong(what: String) -> Error {
    Error::Format(format!("its metadata {KEY} {what}"))
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
                    let words = write(&config);
                    assert!(words.len() < LONGEST);
                    assert_eq!(read(&words).unwrap(), config, "{words}");
                }
            }
        }
    }

    #[test]
    fn other_words_are_refused() {
        let words = write(&GruConfig::new(3, 5));
        for (from, to, expected) in [
            ("input=3", "", "lacks `input`"),
            ("input=3", "input=3 input=3", "has `input` twice"),
            ("input=3", "input=-3", "has `-3` for `input`"),
            ("reset=before", "reset=never", "has `never` for `reset`"),
            ("reset=before", "reset", "has the word `reset`"),
            ("dropout=0", "dropout=0 more=1", "has `more`, which is unknown"),
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
