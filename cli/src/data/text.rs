//! The text of a file, in the encodings that spreadsheets and databases write.

use anyhow::{Context, Result, bail};
use encoding_rs::Encoding;

/// Decodes UTF-8, with or without a byte order mark, and UTF-16 with one.
///
/// # Errors
/// If the bytes are in another encoding. The error names the line.
pub fn decode(bytes: Vec<u8>) -> Result<String> {
    let text = match Encoding::for_bom(&bytes) {
        Some((encoding, mark)) => encoding
            .decode_without_bom_handling_and_without_replacement(&bytes[mark..])
            .with_context(|| {
                format!("its byte order mark says {}, but it is not", encoding.name())
            })?
            .into_owned(),
        None => String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            anyhow::anyhow!("line {line} is not UTF-8 text; save the file as UTF-8")
        })?,
    };
    if text.contains('\0') {
        let line = text.split('\0').next().context("the text before it")?.lines().count().max(1);
        bail!("line {line} has a zero byte; save the file as UTF-8 text");
    }
    // Lines that end as on old Macs.
    let is_old = text.contains('\r') && !text.contains('\n');
    Ok(if is_old { text.replace('\r', "\n") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        format!("\u{feff}{text}").encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn encodings_are_told_by_their_mark() {
        let text = "Datum;Größe\n1;2 €\n";
        for bytes in [
            text.into(),
            format!("\u{feff}{text}").into_bytes(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
        ] {
            assert_eq!(decode(bytes).unwrap(), text);
        }
    }

    #[test]
    fn lines_may_end_with_a_carriage_return_alone() {
        assert_eq!(decode(b"a,b\r1,2\r".to_vec()).unwrap(), "a,b\n1,2\n");
        assert_eq!(decode(b"a,b\r\n1,2\r\n".to_vec()).unwrap(), "a,b\r\n1,2\r\n");
    }

    #[test]
    fn other_encodings_are_refused_with_the_line() {
        let error = |bytes: &[u8]| decode(bytes.to_vec()).unwrap_err().to_string();
        assert!(error(b"a\nb\nGr\xf6\xdfe\n").starts_with("line 3 is not UTF-8"));
        assert!(error(b"a\0\n\0").starts_with("line 1 has a zero byte"));
        assert!(error(b"a\nb\0\n\0").starts_with("line 2 has a zero byte"));
        let mut odd = utf16("ab", u16::to_le_bytes);
        odd.pop();
        assert!(error(&odd).contains("UTF-16LE"));
        assert!(error(b"\xff\xfe\x00\xd8a\0").contains("UTF-16LE"));
        // UTF-32 begins like UTF-16.
        assert!(error(b"\xff\xfe\0\0a\0\0\0").contains("zero byte"));
    }
}
