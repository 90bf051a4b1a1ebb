//! Fuzzes the `.npy` reader with arrays whose headers are nearly valid.
#![no_main]

use std::io::Cursor;

use arbitrary::Arbitrary;
use gru_wgpu::formats::npy;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(&'a [u8]),
    Header(u8, &'a str, &'a [u8]),
    Made { version: u8, kind: u8, fortran: bool, shape: Vec<Size>, more: i8, padding: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Small(u8),
    Any(i64),
    Max,
}

const KINDS: [(&str, usize); 6] =
    [("<f4", 4), ("<f8", 8), ("<f2", 2), (">f4", 4), ("<i4", 4), ("|O", 8)];

fn with_header(version: u8, header: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend_from_slice(&[version, 0]);
    match version {
        1 => bytes.extend_from_slice(&(header.len() as u16).to_le_bytes()),
        _ => bytes.extend_from_slice(&(header.len() as u32).to_le_bytes()),
    }
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

fn made(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::File(bytes) => bytes.to_vec(),
        Input::Header(version, header, data) => {
            [with_header(version % 4, &format!("{header}\n")), data.to_vec()].concat()
        }
        Input::Made { version, kind, fortran, shape, more, padding } => {
            let (kind, width) = KINDS[*kind as usize % KINDS.len()];
            let size = |size: &Size| match *size {
                Size::Small(size) => i128::from(size % 9),
                Size::Any(size) => size.into(),
                Size::Max => u64::MAX.into(),
            };
            let sizes: Vec<_> = shape.iter().take(6).map(size).collect();
            let axes: String = sizes.iter().map(|size| format!("{size}, ")).collect();
            let order = if *fortran { "True" } else { "False" };
            let header =
                format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({axes})}}");
            let padding = " ".repeat((*padding % 64).into());
            let count = sizes.iter().fold(1i128, |count, &size| count.saturating_mul(size));
            let data = (count.clamp(0, 1 << 12) as usize * width)
                .saturating_add_signed((*more % 3).into());
            let mut bytes = with_header(version % 4, &format!("{header}{padding}\n"));
            bytes.resize(bytes.len() + data, 0x3C);
            bytes
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let bytes = made(&input);
    // Writes a seed file for tests/formats/fuzzed.rs.
    if let Ok(path) = std::env::var("FUZZ_WRITE_FILE") {
        std::fs::write(path, &bytes).unwrap();
    }
    if let Ok((array, _)) = npy::read(Cursor::new(&bytes)) {
        assert!(array.is_standard_layout());
        assert!(2 * array.len() <= bytes.len());
    }
});
