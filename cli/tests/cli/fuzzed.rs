//! Tables that the fuzzer kept because they reach new code or found a bug. Each is read or refused.
//! `tests/fuzz/README.md` says how they were made.

use std::path::Path;

use tempfile::TempDir;

#[path = "../../../tests/common/table_bytes.rs"]
mod table_bytes;

use table_bytes::TableInput;

#[test]
fn tables() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fuzzed/table");
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("table.csv");
    let (mut files, mut good) = (0, 0);
    for entry in std::fs::read_dir(kept).unwrap() {
        let name = entry.unwrap().path();
        let TableInput { command, arguments, file } =
            TableInput::of(&std::fs::read(&name).unwrap());
        std::fs::write(&path, file).unwrap();
        files += 1;
        match gru_cli::read_table(command, &path, &arguments) {
            Ok(numbers) => {
                assert!(numbers.iter().all(|number| number.is_finite()), "{}", name.display());
                good += 1;
            }
            Err(error) => {
                let lines = error.chain().map(|cause| cause.to_string().lines().count());
                assert_eq!(lines.max(), Some(1), "{}: {error:?}", name.display());
            }
        }
    }
    assert!(files > good && good > 0, "{good} of {files}");
}
