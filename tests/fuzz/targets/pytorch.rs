//! Fuzzes the reader of PyTorch's files with pickles that hold nearly a GRU.
#![no_main]

use std::io::Cursor;

use arbitrary::Arbitrary;
use gru_wgpu::Head;
use gru_wgpu::formats::{StateDictOptions, pytorch};
use libfuzzer_sys::fuzz_target;

#[path = "../../common/torch_file.rs"]
mod torch_file;

use torch_file::{call, dict, int, old_file, pickle, storage, tensor, text, tuple, zip, zip_file};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(&'a [u8]),
    /// A pickle as it is, in the zip form or the old form.
    Pickle(&'a [u8], bool),
    /// Instructions with plausible arguments.
    Instructions(Vec<(u8, u8)>, bool),
    Gru(Gru<'a>),
    Zip(Vec<(u8, &'a [u8])>, Vec<(u16, u8)>),
}

/// The tensors of a GRU, all in few storages.
#[derive(Arbitrary, Debug)]
struct Gru<'a> {
    input: u8,
    hidden: u8,
    layers: u8,
    both: bool,
    class: u8,
    form: u8,
    is_old: bool,
    wraps: Vec<u8>,
    changes: Vec<Change>,
    /// Bytes of the finished pickle, with their new value.
    bytes: Vec<(u16, u8)>,
    more: &'a [u8],
    /// Elements more or fewer than the tensors need.
    elements: i8,
    value: u8,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Drop(u8),
    Twice(u8),
    Name(u8, u8),
    Shape(u8, u8, i64),
    Stride(u8, u8, i64),
    First(u8, i64),
    Len(u8, i64),
}

const CLASSES: [(&str, usize); 7] = [
    ("FloatStorage", 4),
    ("HalfStorage", 2),
    ("BFloat16Storage", 2),
    ("DoubleStorage", 8),
    ("LongStorage", 8),
    ("UntypedStorage", 1),
    ("NoStorage", 1),
];
const NAMES: [&str; 12] = [
    "weight_ih_l0",
    "weight_hh_l0",
    "bias_ih_l0",
    "weight_hh_l0_raw",
    "weight_hh_l0_g",
    "weight_hh_l0_v",
    "parametrizations.weight_hh_l0.original0",
    "parametrizations.weight_hh_l0.original1",
    "weight_ih_l1",
    "weight_ih",
    "fc.weight",
    "head.bias",
];

fn pick<T>(choices: &[T], at: u8) -> &T {
    &choices[at as usize % choices.len()]
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    first: i64,
    len: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

fn entries(gru: &Gru<'_>) -> Vec<Entry> {
    let (input, hidden) = (i64::from(gru.input % 4) + 1, i64::from(gru.hidden % 4) + 1);
    let ends = if gru.both { &["", "_reverse"][..] } else { &[""] };
    let (mut entries, mut first) = (Vec::new(), 0);
    for layer in 0..i64::from(gru.layers % 3) + 1 {
        for end in ends {
            let wide = if layer == 0 { input } else { hidden * ends.len() as i64 };
            for (kind, shape) in [
                ("weight_ih", vec![3 * hidden, wide]),
                ("weight_hh", vec![3 * hidden, hidden]),
                ("bias_ih", vec![3 * hidden]),
                ("bias_hh", vec![3 * hidden]),
            ] {
                let name = format!("{kind}_l{layer}{end}");
                let strides = if shape.len() == 2 { vec![shape[1], 1] } else { vec![1] };
                let count: i64 = shape.iter().product();
                let mut add = |name, shape: Vec<i64>, strides| {
                    entries.push(Entry { name, first, len: 0, shape, strides });
                    first += count;
                };
                match (kind, gru.form % 4) {
                    ("weight_hh", 1) => {
                        add(format!("{name}_g"), vec![shape[0], 1], vec![1, 1]);
                        add(format!("{name}_v"), shape, strides);
                    }
                    ("weight_hh", 2) => {
                        add(format!("parametrizations.{name}.original0"), vec![], vec![]);
                        add(format!("parametrizations.{name}.original1"), shape, strides);
                    }
                    ("weight_ih", 3) => add(name, shape.clone(), vec![1, shape[0]]),
                    _ => add(name, shape, strides),
                }
            }
        }
    }
    let features = hidden * ends.len() as i64;
    for (name, shape, strides) in
        [("fc.weight", vec![2, features], vec![features, 1]), ("fc.bias", vec![2], vec![1])]
    {
        let count: i64 = shape.iter().product();
        entries.push(Entry { name: name.to_owned(), first, len: 0, shape, strides });
        first += count;
    }
    entries.iter_mut().for_each(|entry| entry.len = first);
    for change in gru.changes.iter().take(4) {
        let (Change::Drop(at)
        | Change::Twice(at)
        | Change::Name(at, _)
        | Change::Shape(at, ..)
        | Change::Stride(at, ..)
        | Change::First(at, _)
        | Change::Len(at, _)) = *change;
        if entries.is_empty() {
            break;
        }
        let at = at as usize % entries.len();
        let set = |sizes: &mut Vec<i64>, axis: u8, size| {
            let axis = axis as usize % sizes.len().max(1);
            sizes.get_mut(axis).into_iter().for_each(|to| *to = size);
        };
        match *change {
            Change::Drop(_) => drop(entries.remove(at)),
            Change::Twice(_) => entries.push(entries[at].clone()),
            Change::Name(_, name) => entries[at].name = (*pick(&NAMES, name)).to_owned(),
            Change::Shape(_, axis, size) => set(&mut entries[at].shape, axis, size),
            Change::Stride(_, axis, size) => set(&mut entries[at].strides, axis, size),
            Change::First(_, first) => entries[at].first = first,
            Change::Len(_, len) => entries[at].len = len,
        }
    }
    entries
}

fn gru(gru: &Gru<'_>) -> Vec<u8> {
    let entries = entries(gru);
    let (class, size) = *pick(&CLASSES, gru.class);
    let items: Vec<_> = entries
        .iter()
        .map(|entry| {
            let storage = storage(class, "0", entry.len);
            let Entry { name, first, shape, strides, .. } = entry;
            (text(name), tensor(storage, *first, shape, strides))
        })
        .collect();
    let mut value = dict(&items);
    for wrap in gru.wraps.iter().take(20) {
        value = match wrap % 7 {
            0 => dict(&[(text("state_dict"), value)]),
            1 => dict(&[(int(i64::from(*wrap)), value)]),
            2 => tuple(&[int(1), value]),
            3 => [call("no.module", "Class", &[]), value, b"b".to_vec()].concat(),
            4 => dict(&[(text("_modules"), value)]),
            5 => [b"]", &value[..], b"a2a"].concat(),
            _ => [&value[..], b"q\x01h\x01\x86"].concat(),
        };
    }
    let mut object = pickle(&[&value[..], gru.more].concat());
    change(&mut object, &gru.bytes);
    let len = entries.first().map_or(0, |entry| entry.len.clamp(0, 1 << 12));
    let count = len.saturating_add(gru.elements.into()).max(0) as usize;
    // Numbers that are finite as every type.
    let bytes = vec![gru.value & 0x3F; count * size];
    match gru.is_old {
        true => old_file(&object, &[(len as u64, bytes)]),
        false => zip_file(object, &[bytes]),
    }
}

fn change(bytes: &mut [u8], changes: &[(u16, u8)]) {
    for &(at, value) in changes.iter().take(4) {
        let at = at as usize % bytes.len();
        bytes[at] = value;
    }
}

fn instructions(instructions: &[(u8, u8)]) -> Vec<u8> {
    const TEXTS: [&str; 8] = [
        "weight_ih_l0",
        "weight_hh_l0",
        "_rebuild_tensor_v2",
        "torch._utils",
        "OrderedDict",
        "collections",
        "_rebuild_from_type_v2",
        "torch._tensor",
    ];
    let mut object = b"\x80\x04".to_vec();
    for &(opcode, argument) in instructions {
        match opcode % 24 {
            0 => object.extend([b'h', argument % 16]),
            1 => object.extend([b'q', argument % 16]),
            2 => object.extend(text(TEXTS[argument as usize % TEXTS.len()])),
            3 => object.extend([b'K', argument]),
            4 => object.extend(tensor(storage("FloatStorage", "0", 3), 0, &[3, 1], &[1, 1])),
            5 => object.extend(storage("FloatStorage", "0", argument.into())),
            6 => object.extend(torch_file::global("collections", "OrderedDict")),
            7 => object.extend(torch_file::global("torch._tensor", "_rebuild_from_type_v2")),
            other => object.push(b"N(})]tuseaRb\x81\x85\x86\x93\x94Q"[other as usize % 18]),
        }
    }
    object.push(b'.');
    object
}

fn made(input: &Input<'_>) -> Vec<u8> {
    let whole = |object: Vec<u8>, is_old| match is_old {
        true => old_file(&object, &[(3, vec![0; 12])]),
        false => zip_file(object, &[vec![0; 12]]),
    };
    match input {
        Input::File(bytes) => bytes.to_vec(),
        Input::Pickle(bytes, is_old) => whole(bytes.to_vec(), *is_old),
        Input::Instructions(list, is_old) => whole(instructions(list), *is_old),
        Input::Gru(of) => gru(of),
        Input::Zip(entries, changes) => {
            let names = ["m/data.pkl", "data.pkl", "m/data/0", "m/byteorder", "a.npy", ""];
            let entry = |(name, bytes): &(u8, &[u8])| {
                ((*pick(&names, *name)).to_owned(), bytes.to_vec())
            };
            let mut file = zip(&entries.iter().map(entry).collect::<Vec<_>>());
            change(&mut file, changes);
            file
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let bytes = made(&input);
    // Writes a seed file for tests/formats/fuzzed.rs.
    if let Ok(path) = std::env::var("FUZZ_WRITE_FILE") {
        std::fs::write(path, &bytes).unwrap();
    }
    let prefixes = pytorch::read_prefixes(Cursor::new(&bytes)).unwrap_or_default();
    for prefix in [None, Some("0+0,0"), prefixes.first().map(String::as_str)] {
        let options = StateDictOptions::new().with_prefix(prefix);
        if let Ok(params) = pytorch::read(Cursor::new(&bytes), &options) {
            assert!(params.layout().parameter_count() <= bytes.len());
            assert!(params.as_slice().iter().all(|number| number.is_finite()));
        }
        for name in [None, Some("fc"), Some("head")] {
            let options = options.clone().with_head(Head::last(2)).with_head_name(name);
            if let Ok(params) = pytorch::read_network(Cursor::new(&bytes), &options) {
                assert!(params.layout().parameter_count() <= 2 * bytes.len());
                assert!(params.as_slice().iter().all(|number| number.is_finite()));
                assert_eq!(params.layout().head(), Some(Head::last(2)));
            }
        }
    }
});
