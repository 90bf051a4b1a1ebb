//! The metadata of this crate's own files: a configuration as text in `key=value` pairs.

use std::str::FromStr;

use crate::error::{Error, Result, quote};
use crate::spec::activation::Activations;
use crate::spec::config::{Bias, Direction, GruConfig, Reset, Update};
use crate::spec::head::Readout;

/// The key of the metadata entry that holds a model's configuration.
pub(super) const CONFIG_KEY: &str = "gru_wgpu.config";

/// The longest accepted text, in bytes. [`write_config`] and checkpoints write less.
const MAX_LEN: usize = 1000;

const DIRECTIONS: &[(Direction, &str)] =
    &[(Direction::Forward, "forward"), (Direction::Reverse, "reverse"), (Direction::Both, "both")];
const RESETS: &[(Reset, &str)] = &[(Reset::Before, "before"), (Reset::After, "after")];
const UPDATES: &[(Update, &str)] = &[(Update::Overwrites, "overwrites"), (Update::Keeps, "keeps")];
const BIASES: &[(Bias, &str)] = &[(Bias::None, "none"), (Bias::One, "one"), (Bias::Two, "two")];
const READOUTS: &[(Readout, &str)] =
    &[(Readout::EveryStep, "every-step"), (Readout::LastState, "last")];

/// Writes a configuration as text: `input=3 hidden=5 layers=1 direction=forward reset=after
/// update=keeps bias=two gate=sigmoid candidate=tanh dropout=0 zoneout=0`. What follows only some
/// configurations have: `reverse-gate`, `reverse-candidate`, `clip`, and `head=last` or
/// `head=every-step`.
pub(crate) fn write_config(config: &GruConfig, readout: Option<Readout>) -> String {
    let mut more = String::new();
    if let Some(Activations { gate, candidate }) = config.reverse_activations {
        more.push_str(&format!(" reverse-gate={gate} reverse-candidate={candidate}"));
    }
    if let Some(clip) = config.clip {
        more.push_str(&format!(" clip={clip}"));
    }
    if let Some(readout) = readout {
        more.push_str(&format!(" head={}", word(READOUTS, readout)));
    }
    format!(
        "input={} hidden={} layers={} direction={} reset={} update={} bias={} gate={} candidate={} \
         dropout={} zoneout={}{more}",
        config.input_size,
        config.hidden_size,
        config.layers,
        word(DIRECTIONS, config.direction),
        word(RESETS, config.reset),
        word(UPDATES, config.update),
        word(BIASES, config.bias),
        config.activations.gate,
        config.activations.candidate,
        config.dropout,
        config.zoneout,
    )
}

/// Reads the text that [`write_config`] writes. Requires every key exactly once and no other key.
///
/// # Errors
/// [`Error::Format`]; the errors of [`GruConfig::validate`].
pub(crate) fn read_config(text: &str) -> Result<(GruConfig, Option<Readout>)> {
    let mut pairs = KeyValues::parse(CONFIG_KEY, text)?;
    let readout = if pairs.has("head") { Some(pairs.named("head", READOUTS)?) } else { None };
    let reverse = if pairs.has("reverse-gate") {
        let [gate, candidate] = ["reverse-gate", "reverse-candidate"].map(|key| pairs.parsed(key));
        Some(Activations { gate: gate?, candidate: candidate? })
    } else {
        None
    };
    let clip = if pairs.has("clip") { Some(pairs.number("clip")?) } else { None };
    let config = GruConfig::new(pairs.number("input")?, pairs.number("hidden")?)
        .with_layers(pairs.number("layers")?)
        .with_direction(pairs.named("direction", DIRECTIONS)?)
        .with_reset(pairs.named("reset", RESETS)?)
        .with_update(pairs.named("update", UPDATES)?)
        .with_bias(pairs.named("bias", BIASES)?)
        .with_activations(pairs.parsed("gate")?, pairs.parsed("candidate")?)
        .with_reverse_activations(reverse)
        .with_clip(clip)
        .with_dropout(pairs.number("dropout")?)
        .with_zoneout(pairs.number("zoneout")?);
    pairs.end()?;
    config.validate()?;
    Ok((config, readout))
}

/// Returns the word for a value.
pub(crate) fn word<V: PartialEq>(vocabulary: &[(V, &'static str)], value: V) -> &'static str {
    let found = vocabulary.iter().find(|(known, _)| *known == value);
    found.expect("the vocabulary has a word for every value").1
}

/// A parser of `key=value` pairs; each pair is taken once.
pub(crate) struct KeyValues<'a> {
    /// The name of the metadata entry, for error messages.
    entry: &'static str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> KeyValues<'a> {
    /// Splits a text into pairs. Refuses a key that appears twice.
    pub fn parse(entry: &'static str, text: &'a str) -> Result<Self> {
        let mut all = Self { entry, pairs: Vec::new() };
        if text.len() > MAX_LEN {
            return Err(all.error(format!("has {} bytes; expected at most {MAX_LEN}", text.len())));
        }
        for word in text.split_whitespace() {
            let pair = word.split_once('=');
            let (key, value) = pair.ok_or_else(|| {
                all.error(format!("has the word {}; expected key=value pairs", quote(word)))
            })?;
            if all.has(key) {
                return Err(all.error(format!("has {} twice", quote(key))));
            }
            all.pairs.push((key, value));
        }
        Ok(all)
    }

    /// True if the key is there and not taken yet.
    pub fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|&(known, _)| known == key)
    }

    fn take(&mut self, key: &str) -> Result<&'a str> {
        let at = self.pairs.iter().position(|&(known, _)| known == key);
        let at = at.ok_or_else(|| self.error(format!("lacks `{key}`")))?;
        Ok(self.pairs.swap_remove(at).1)
    }

    /// Takes a number.
    pub fn number<T: FromStr>(&mut self, key: &str) -> Result<T> {
        let value = self.take(key)?;
        value.parse().map_err(|_| self.invalid(key, value, "a valid number"))
    }

    /// Takes a value whose type says what is wrong with a text.
    pub fn parsed<T: FromStr<Err = Error>>(&mut self, key: &str) -> Result<T> {
        let value = self.take(key)?;
        value
            .parse()
            .map_err(|error| self.error(format!("has {} for `{key}`: {error}", quote(value))))
    }

    /// Takes a number, or `None` for the word `none`.
    #[cfg(feature = "safetensors")]
    pub fn option<T: FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        match self.take(key)? {
            "none" => Ok(None),
            value => {
                value.parse().map(Some).map_err(|_| self.invalid(key, value, "a number or none"))
            }
        }
    }

    /// Takes a value that is one of the words of `vocabulary`.
    pub fn named<V: Copy>(&mut self, key: &str, vocabulary: &[(V, &str)]) -> Result<V> {
        let value = self.take(key)?;
        let found = vocabulary.iter().find(|&&(_, word)| word == value);
        found.map(|&(known, _)| known).ok_or_else(|| {
            let words: Vec<_> = vocabulary.iter().map(|&(_, word)| word).collect();
            self.invalid(key, value, &words.join(" or "))
        })
    }

    /// Checks that every pair is taken.
    pub fn end(&self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.error(format!("has {}, which is unknown", quote(key)))),
        }
    }

    fn invalid(&self, key: &str, value: &str, expected: &str) -> Error {
        self.error(format!("has {} for `{key}`; expected {expected}", quote(value)))
    }

    fn error(&self, reason: String) -> Error {
        Error::format(format!("its metadata {} {reason}", self.entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::activation::Activation;

    #[test]
    fn every_configuration_round_trips() {
        for config in GruConfig::all_variants(3, 5) {
            for &(direction, _) in DIRECTIONS {
                for gate in Activation::ALL {
                    let config = config.clone().with_layers(2).with_direction(direction);
                    let config = config.with_activations(gate, gate).with_dropout(0.1);
                    let is_both = direction == Direction::Both;
                    let reverse = Activations { gate: Activation::Softsign, candidate: gate };
                    let config = config
                        .with_reverse_activations(is_both.then_some(reverse))
                        .with_clip(is_both.then_some(0.3));
                    for readout in [None, Some(Readout::LastState), Some(Readout::EveryStep)] {
                        let text = write_config(&config, readout);
                        assert!(text.len() < MAX_LEN);
                        assert_eq!(
                            read_config(&text).unwrap(),
                            (config.clone(), readout),
                            "{text}"
                        );
                    }
                }
            }
        }
    }

    /// The metadata and serde use the same words for the values of a configuration.
    #[test]
    #[cfg(feature = "serde")]
    fn words_equal_those_of_serde() {
        fn check<V: serde::Serialize>(vocabulary: &[(V, &str)]) {
            for (value, word) in vocabulary {
                assert_eq!(serde_json::to_value(value).unwrap(), *word);
            }
        }
        check(DIRECTIONS);
        check(RESETS);
        check(UPDATES);
        check(BIASES);
        check(READOUTS);
    }

    #[test]
    fn invalid_text_is_refused() {
        let text = write_config(&GruConfig::new(3, 5), Some(Readout::LastState));
        for (from, to, expected) in [
            ("input=3", "", "lacks `input`"),
            ("input=3", "input=3 input=3", "has `input` twice"),
            ("input=3", "input=-3", "has `-3` for `input`"),
            ("reset=before", "reset=never", "has `never` for `reset`"),
            ("reset=before", "reset", "has the word `reset`"),
            ("dropout=0", "dropout=0 more=1", "has `more`, which is unknown"),
            ("gate=sigmoid", "gate=softmax", "has `softmax` for `gate`: an activation is"),
            ("head=last", "clip=0", "the clip is 0"),
            ("head=last", "reverse-gate=tanh", "lacks `reverse-candidate`"),
            ("head=last", "head=first", "has `first` for `head`"),
            ("input=3", "input=0", "input size I is 0"),
            ("dropout=0", "dropout=NaN", "dropout is NaN"),
            ("layers=1", "layers=18446744073709551615", "overflows"),
            ("input=3", &"x".repeat(1000), "bytes"),
        ] {
            let error = read_config(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
