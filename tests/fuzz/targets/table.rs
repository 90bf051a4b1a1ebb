//! Fuzzes the readers of tables: `gru forecast` and `gru train`, up to the numbers that training
//! gets.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../common/table_bytes.rs"]
mod table_bytes;

use table_bytes::TableInput;

fuzz_target!(|bytes: &[u8]| {
    let TableInput { command, arguments, file } = TableInput::of(bytes);
    // Each process of libFuzzer has its own file.
    let path = std::env::temp_dir().join(format!("gru-fuzz-{}.csv", std::process::id()));
    std::fs::write(&path, file).unwrap();
    if let Ok(numbers) = gru_cli::read_table(command, &path, &arguments) {
        assert!(numbers.iter().all(|number| number.is_finite()), "{command} {arguments:?}");
    }
});
