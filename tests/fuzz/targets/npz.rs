//! Fuzzes the reader of `.npz` archives with arrays that are nearly a GRU's, in every layout.
#![no_main]

use std::io::Cursor;

use arbitrary::Arbitrary;
use gru_wgpu::formats::{StateDictOptions, WeightLayout, npz, safetensors};
use gru_wgpu::{Params, Reset};
use libfuzzer_sys::fuzz_target;

#[path = "../../common/torch_file.rs"]
mod torch_file;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(&'a [u8]),
    /// Arrays of any names and shapes.
    Made(Vec<Array>, Comment<'a>, Vec<(u16, u8)>),
    /// The cells of a GRU, in one layout, with changes.
    Gru(Gru, Vec<Change>, Comment<'a>, Vec<(u16, u8)>),
}

#[derive(Arbitrary, Debug)]
struct Array {
    prefix: u8,
    name: u8,
    kind: u8,
    shape: Vec<Size>,
    more: i8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Small(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct Gru {
    layout: u8,
    input: u8,
    hidden: u8,
    layers: u8,
    biases: u8,
    naming: u8,
    kind: u8,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Drop(u8),
    Twice(u8),
    Name(u8, u8, u8),
    Shape(u8, u8, Size),
    Axes(u8),
    Kind(u8, u8),
}

#[derive(Arbitrary, Debug)]
enum Comment<'a> {
    None,
    Text(&'a str),
    Definition { input: u8, hidden: u8, layers: u8, variant: u8, odd: Option<&'a str> },
}

const NAMES: [&str; 30] = [
    "kernel",
    "recurrent_kernel",
    "bias",
    "kernel:0",
    "ir/kernel",
    "iz/kernel",
    "in/kernel",
    "hr/kernel",
    "hz/kernel",
    "hn/kernel",
    "ir/bias",
    "iz/bias",
    "in/bias",
    "hn/bias",
    "dense_i.kernel",
    "dense_h.kernel",
    "dense_i.bias",
    "Wx",
    "Wh",
    "b",
    "bhn",
    "W",
    "R",
    "B",
    "weight_ih_l0",
    "weight_hh_l0",
    "bias_ih_l0",
    "bias_hh_l0",
    "gamma",
    "hr.bias",
];
const PREFIXES: [&str; 14] = [
    "",
    "gru/",
    "gru/gru_cell/",
    "gru_1/gru_cell/",
    "bidirectional/forward_gru/gru_cell/",
    "bidirectional/backward_gru/gru_cell/",
    "bidirectional_1/forward_gru_1/gru_cell/",
    "GRUCell_0/",
    "GRUCell_1/",
    "layers.0.",
    "layers.1.",
    "forward.",
    "backward.",
    "a/gru_cell_1/",
];
const KINDS: [(&str, usize); 5] = [("<f4", 4), ("<f2", 2), ("<f8", 8), ("<i4", 4), (">f4", 4)];

fn pick<T>(choices: &[T], at: u8) -> &T {
    &choices[at as usize % choices.len()]
}

/// An array's name, shape, type and surplus bytes.
type Entry = (String, Vec<u64>, u8, i8);

fn size(size: Size) -> u64 {
    match size {
        Size::Small(size) => u64::from(size % 17),
        Size::Any(size) => size,
    }
}

fn arrays(made: &[Array]) -> Vec<Entry> {
    let entry = |array: &Array| {
        let name = format!("{}{}", pick(&PREFIXES, array.prefix), pick(&NAMES, array.name));
        let shape = array.shape.iter().take(4).map(|&s| size(s)).collect();
        (name, shape, array.kind, if array.more % 8 == 0 { array.more / 8 } else { 0 })
    };
    made.iter().take(24).map(entry).collect()
}

fn gru(gru: &Gru) -> Vec<Entry> {
    let (input, h) = (u64::from(gru.input % 4), u64::from(gru.hidden % 4));
    let two = gru.naming % 2 == 1;
    let directions = if two { 2 } else { 1 };
    let mut entries = Vec::new();
    for layer in 0..u64::from(gru.layers % 3) {
        let i = if layer == 0 { input } else { directions * h };
        for way in ["forward", "backward"].into_iter().take(directions as usize) {
            let cell = layer * directions + u64::from(way == "backward");
            let end = if layer == 0 { String::new() } else { format!("_{layer}") };
            let keras = match two {
                true => format!("bidirectional{end}/{way}_gru{end}/gru_cell/"),
                false => format!("gru{end}/gru_cell/"),
            };
            let (prefix, named): (String, Vec<(&str, Vec<u64>)>) = match gru.layout % 5 {
                0 => (
                    keras,
                    vec![
                        ("kernel", vec![i, 3 * h]),
                        ("recurrent_kernel", vec![h, 3 * h]),
                        ("bias", if gru.naming & 4 == 0 { vec![2, 3 * h] } else { vec![3 * h] }),
                    ],
                ),
                1 => {
                    let kernels = ["ir", "iz", "in"].map(|gate| (gate, i));
                    let recurrent = ["hr", "hz", "hn"].map(|gate| (gate, h));
                    let names = kernels.iter().chain(&recurrent);
                    let mut named: Vec<_> = names
                        .map(|&(gate, rows)| {
                            let name = NAMES[4..10].iter().find(|name| name.starts_with(gate));
                            (*name.unwrap(), vec![rows, h])
                        })
                        .collect();
                    named.extend(NAMES[10..14].iter().map(|name| (*name, vec![h])));
                    (format!("GRUCell_{cell}/"), named)
                }
                2 => (
                    format!("layers.{cell}.cell."),
                    vec![
                        ("dense_i.kernel", vec![i, 3 * h]),
                        ("dense_h.kernel", vec![h, 3 * h]),
                        ("dense_i.bias", vec![3 * h]),
                    ],
                ),
                3 => (
                    format!(
                        "layers.{layer}.{}",
                        if two { format!("{way}.") } else { String::new() }
                    ),
                    vec![
                        ("Wx", vec![3 * h, i]),
                        ("Wh", vec![3 * h, h]),
                        ("b", vec![3 * h]),
                        ("bhn", vec![h]),
                    ],
                ),
                _ if way == "backward" => continue,
                _ => (
                    format!("layers.{layer}."),
                    vec![
                        ("W", vec![directions, 3 * h, i]),
                        ("R", vec![directions, 3 * h, h]),
                        ("B", vec![directions, 6 * h]),
                    ],
                ),
            };
            // The only layer has no number.
            let prefix = match gru.layers % 3 == 1 && gru.layout % 5 > 2 {
                true => prefix.replace("layers.0.", ""),
                false => prefix,
            };
            let biases = gru.biases as usize % 4;
            let kept = named.len().saturating_sub(biases);
            for (name, shape) in named.into_iter().take(kept) {
                entries.push((format!("{prefix}{name}"), shape, gru.kind % 3, 0));
            }
        }
    }
    entries
}

fn change(entries: &mut Vec<Entry>, changes: &[Change]) {
    for change in changes.iter().take(4) {
        let (Change::Drop(at)
        | Change::Twice(at)
        | Change::Name(at, ..)
        | Change::Shape(at, ..)
        | Change::Axes(at)
        | Change::Kind(at, _)) = *change;
        if entries.is_empty() {
            return;
        }
        let at = at as usize % entries.len();
        match *change {
            Change::Drop(_) => drop(entries.remove(at)),
            Change::Twice(_) => entries.push(entries[at].clone()),
            Change::Name(_, prefix, name) => {
                entries[at].0 = format!("{}{}", pick(&PREFIXES, prefix), pick(&NAMES, name));
            }
            Change::Shape(_, axis, to) => {
                let shape = &mut entries[at].1;
                let axis = axis as usize % shape.len().max(1);
                if let Some(place) = shape.get_mut(axis) {
                    *place = size(to);
                }
            }
            Change::Axes(_) => entries[at].1.reverse(),
            Change::Kind(_, kind) => entries[at].2 = kind,
        }
    }
}

fn comment(comment: &Comment<'_>) -> String {
    match *comment {
        Comment::None => String::new(),
        Comment::Text(text) => format!("gru_wgpu.config {text}"),
        Comment::Definition { input, hidden, layers, variant, odd } => format!(
            "gru_wgpu.config input={} hidden={} layers={} direction={} reset={} update={} bias={} \
             gate=sigmoid candidate=tanh dropout=0 zoneout=0{}",
            input % 4,
            hidden % 4,
            layers % 3,
            pick(&["forward", "reverse", "both"], variant),
            pick(&["before", "after"], variant >> 2),
            pick(&["keeps", "overwrites"], variant >> 3),
            pick(&["none", "one", "two"], variant >> 4),
            odd.unwrap_or(""),
        ),
    }
}

fn archive(entries: &[Entry], text: &str, changes: &[(u16, u8)]) -> Vec<u8> {
    let entry = |(name, shape, kind, more): &Entry| {
        let (kind, width) = *pick(&KINDS, *kind);
        let axes: String = shape.iter().map(|size| format!("{size}, ")).collect();
        let header =
            format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({axes}), }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        let count = shape.iter().fold(1u64, |count, &size| count.saturating_mul(size));
        let data = (count.min(1 << 10) as usize * width).saturating_add_signed((*more).into());
        bytes.resize(bytes.len() + data, 0x3C);
        (format!("{name}.npy"), bytes)
    };
    let mut file = torch_file::zip(&entries.iter().map(entry).collect::<Vec<_>>());
    // The archive ends with the length of its comment.
    let text = &text.as_bytes()[..text.len().min(1100)];
    let end = file.len() - 2;
    file[end..].copy_from_slice(&(text.len() as u16).to_le_bytes());
    file.extend_from_slice(text);
    for &(at, value) in changes.iter().take(3) {
        let at = at as usize % file.len();
        file[at] = value;
    }
    file
}

fn made(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::File(bytes) => bytes.to_vec(),
        Input::Made(made, words, changes) => archive(&arrays(made), &comment(words), changes),
        Input::Gru(of, edits, words, changes) => {
            let mut entries = gru(of);
            change(&mut entries, edits);
            archive(&entries, &comment(words), changes)
        }
    }
}

/// A model that was read is written in every layout and read again.
fn check(params: &Params) {
    assert!(params.as_slice().iter().all(|number| number.is_finite()));
    let config = params.layout().config();
    for layout in WeightLayout::ALL {
        let mut file = Cursor::new(Vec::new());
        if npz::write(&mut file, params, layout).is_err() {
            assert!(layout != WeightLayout::Pytorch);
            continue;
        }
        let back = npz::read(file, &StateDictOptions::new().with_non_finite(true)).unwrap();
        assert_eq!(back.layout().config(), config, "{layout}");
        let mut file = Vec::new();
        safetensors::write_as(&mut file, params, layout).unwrap();
        let options = StateDictOptions::new().with_non_finite(true);
        assert_eq!(safetensors::read(Cursor::new(file), &options).unwrap(), back, "{layout}");
        if layout == WeightLayout::Pytorch {
            assert_eq!(&back, params);
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let bytes = made(&input);
    // Writes a seed file for tests/formats/fuzzed.rs.
    if let Ok(path) = std::env::var("FUZZ_WRITE_FILE") {
        std::fs::write(path, &bytes).unwrap();
    }
    let prefixes = npz::read_prefixes(Cursor::new(&bytes)).unwrap_or_default();
    let first = prefixes.first().map(String::as_str);
    let joined = prefixes.join(",");
    for prefix in [None, first, Some("GRUCell_0+GRUCell_1"), Some(&joined)] {
        for reset in [None, Some(Reset::Before)] {
            let options = StateDictOptions::new().with_prefix(prefix).with_reset(reset);
            if let Ok(params) = npz::read(Cursor::new(&bytes), &options) {
                check(&params);
            }
        }
    }
});
