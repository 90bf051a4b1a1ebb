//! Fuzzes the safetensors readers with files whose tensors are nearly a GRU.
#![no_main]

use std::fmt::Write;
use std::io::Cursor;

use arbitrary::Arbitrary;
use gru_wgpu::{Checkpoint, Head, formats::safetensors};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(&'a [u8]),
    Made(Vec<Tensor>, Metadata<'a>, Data),
    Gru(Gru, Vec<Change>, Data),
    Other(Gru, Vec<Change>, Metadata<'a>, Data),
}

#[derive(Arbitrary, Debug)]
struct Tensor {
    prefix: u8,
    name: u8,
    dtype: u8,
    shape: Vec<Size>,
    offsets: Option<(u64, u64)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Small(u8),
    Any(u64),
}

/// The tensors of a complete GRU.
#[derive(Arbitrary, Debug)]
struct Gru {
    input: u8,
    hidden: u8,
    layers: u8,
    both: bool,
    biases: u8,
    dtype: u8,
    prefix: u8,
}

/// A change to one tensor of a GRU.
#[derive(Arbitrary, Debug)]
enum Change {
    Drop(u8),
    Twice(u8),
    Shape(u8, u8, Size),
    Dtype(u8, u8),
    Offsets(u8, i8, i8),
    Name(u8, u8),
}

#[derive(Arbitrary, Debug)]
enum Metadata<'a> {
    None,
    Text(&'a str),
    Words { input: u8, hidden: u8, layers: u8, direction: u8, variant: u8, odd: Option<&'a str> },
}

/// The tensor data after the header.
#[derive(Arbitrary, Debug)]
struct Data {
    /// Bytes more or fewer than the header describes.
    more: i8,
    /// The value of every byte.
    value: u8,
}

const PREFIXES: [&str; 4] = ["", "a.", "a.b.", "gru"];
const NAMES: [&str; 12] = [
    "weight_ih_l0",
    "weight_hh_l0",
    "bias_ih_l0",
    "bias_hh_l0",
    "weight_ih_l0_reverse",
    "weight_hh_l0_reverse",
    "weight_ih_l1",
    "weight_hh_l1",
    "weight_ih",
    "weight_hr_l0",
    "fc.weight",
    "fc.bias",
];
const DTYPES: [(&str, u64); 6] =
    [("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8), ("U8", 1), ("BOOL", 1)];

fn pick<T>(choices: &[T], at: u8) -> &T {
    &choices[at as usize % choices.len()]
}

/// A tensor's name, type, shape and bytes.
type Entry = (String, &'static str, Vec<u64>, [u64; 2]);

fn tensors(made: &[Tensor]) -> Vec<Entry> {
    let mut end = 0u64;
    let entry = |tensor: &Tensor| {
        let (dtype, width) = *pick(&DTYPES, tensor.dtype);
        let size = |size: &Size| match *size {
            Size::Small(size) => u64::from(size % 17),
            Size::Any(size) => size,
        };
        let shape: Vec<_> = tensor.shape.iter().take(4).map(size).collect();
        let bytes = shape.iter().fold(width, |bytes, &size| bytes.wrapping_mul(size));
        let offsets = tensor.offsets.unwrap_or((end, end.wrapping_add(bytes)));
        end = offsets.1;
        let name = format!("{}{}", pick(&PREFIXES, tensor.prefix), pick(&NAMES, tensor.name));
        (name, dtype, shape, [offsets.0, offsets.1])
    };
    made.iter().take(24).map(entry).collect()
}

fn gru(gru: &Gru) -> Vec<Entry> {
    let (input, hidden) = (u64::from(gru.input % 5), u64::from(gru.hidden % 5));
    let suffixes = if gru.both { &["", "_reverse"][..] } else { &[""] };
    let (dtype, width) = *pick(&DTYPES[..3], gru.dtype);
    let mut entries = Vec::new();
    let mut end = 0;
    for layer in 0..u64::from(gru.layers % 4) {
        for suffix in suffixes {
            let wide = if layer == 0 { input } else { hidden * suffixes.len() as u64 };
            for (kind, shape) in [
                ("weight_ih", vec![3 * hidden, wide]),
                ("weight_hh", vec![3 * hidden, hidden]),
                ("bias_ih", vec![3 * hidden]),
                ("bias_hh", vec![3 * hidden]),
            ]
            .into_iter()
            .take(2 + gru.biases as usize % 3)
            {
                let first = end;
                end += width * shape.iter().product::<u64>();
                let name = format!("{}{kind}_l{layer}{suffix}", pick(&PREFIXES, gru.prefix));
                entries.push((name, dtype, shape, [first, end]));
            }
        }
    }
    entries
}

fn change(entries: &mut Vec<Entry>, changes: &[Change]) {
    for change in changes.iter().take(4) {
        let (Change::Drop(at)
        | Change::Twice(at)
        | Change::Shape(at, ..)
        | Change::Dtype(at, _)
        | Change::Offsets(at, ..)
        | Change::Name(at, _)) = *change;
        if entries.is_empty() {
            return;
        }
        let at = at as usize % entries.len();
        match *change {
            Change::Drop(_) => drop(entries.remove(at)),
            Change::Twice(_) => entries.push(entries[at].clone()),
            Change::Shape(_, axis, size) => {
                let shape = &mut entries[at].2;
                let axis = axis as usize % shape.len().max(1);
                let size = match size {
                    Size::Small(size) => u64::from(size % 17),
                    Size::Any(size) => size,
                };
                if let Some(place) = shape.get_mut(axis) {
                    *place = size;
                }
            }
            Change::Dtype(_, dtype) => entries[at].1 = pick(&DTYPES, dtype).0,
            Change::Offsets(_, first, end) => {
                let offsets = &mut entries[at].3;
                offsets[0] = offsets[0].wrapping_add_signed(first.into());
                offsets[1] = offsets[1].wrapping_add_signed(end.into());
            }
            Change::Name(_, name) => entries[at].0 = (*pick(&NAMES, name)).to_owned(),
        }
    }
}

fn metadata(metadata: &Metadata<'_>) -> Option<String> {
    match *metadata {
        Metadata::None => None,
        Metadata::Text(text) => Some(text.to_owned()),
        Metadata::Words { input, hidden, layers, direction, variant, odd } => Some(format!(
            "input={} hidden={} layers={} direction={} reset={} update={} bias={} gate={} \
             candidate=tanh dropout=0 zoneout=0{}",
            input % 5,
            hidden % 5,
            layers % 4,
            pick(&["forward", "reverse", "both"], direction),
            pick(&["before", "after"], variant),
            pick(&["keeps", "overwrites"], variant >> 1),
            pick(&["none", "one", "two"], variant >> 2),
            pick(&["sigmoid", "hard-sigmoid", "relu"], variant >> 4),
            odd.unwrap_or(""),
        )),
    }
}

fn file(entries: &[Entry], words: Option<String>, data: &Data) -> Vec<u8> {
    let mut header = String::from("{");
    if let Some(words) = words {
        let words = words.replace('\\', "\\\\").replace('"', "\\\"");
        write!(header, r#""__metadata__":{{"gru_wgpu.config":"{words}"}},"#).unwrap();
    }
    for (name, dtype, shape, offsets) in entries {
        let entry = format!(r#""dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}"#);
        write!(header, r#""{name}":{{{entry}}},"#).unwrap();
    }
    let header = format!("{}}}", header.trim_end_matches(','));
    let described = entries.iter().map(|entry| entry.3[1]).max().unwrap_or(0).min(1 << 16);
    let len =
        described.saturating_add_signed(if data.more % 4 == 0 { 0 } else { data.more.into() });
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + len as usize, data.value);
    bytes
}

fn made(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::File(bytes) => bytes.to_vec(),
        Input::Made(made, words, data) => file(&tensors(made), metadata(words), data),
        Input::Gru(of, changes, data) => {
            let mut entries = gru(of);
            change(&mut entries, changes);
            file(&entries, None, data)
        }
        Input::Other(of, changes, words, data) => {
            let mut entries = gru(of);
            change(&mut entries, changes);
            file(&entries, metadata(words), data)
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let bytes = made(&input);
    // Writes a seed file for tests/formats/fuzzed.rs.
    if let Ok(path) = std::env::var("FUZZ_WRITE_FILE") {
        std::fs::write(path, &bytes).unwrap();
    }
    for prefix in [None, Some("a")] {
        let options = safetensors::SafetensorsOptions::new().with_prefix(prefix);
        if let Ok(params) = safetensors::read(Cursor::new(&bytes), &options) {
            assert!(params.layout().parameter_count() <= bytes.len());
            assert!(params.as_slice().iter().all(|number| number.is_finite()));
        }
        for head in [None, Some(Head::last(2))] {
            let options = options.clone().with_head(head);
            if let Ok(params) = safetensors::read_network(Cursor::new(&bytes), &options) {
                assert!(params.layout().parameter_count() <= 2 * bytes.len());
                assert!(params.layout().head().is_some());
            }
        }
    }
    // The checksum refuses nearly every file that this crate did not write.
    if let Ok(checkpoint) = Checkpoint::read(Cursor::new(&bytes)) {
        assert!(checkpoint.learner_config.validate().is_ok());
    }
});
