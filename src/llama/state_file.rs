//! The front of a file that holds a session's state. llama.cpp takes its lengths at their
//! word, even where the file is shorter, so they are looked at first.
//!
//! ```text
//!  magic  version  count  tokens       length  architecture  memory...
//!   u32     u32     u32   i32 * count    u32   u8 * length
//! ```

use std::io::{ErrorKind, Read, Seek, SeekFrom};

/// Bytes of magic, version and count.
const FRONT_BYTES: u64 = 12;

/// Bytes of an architecture's name, the NUL behind it included; llama.cpp's are shorter.
pub(super) const ARCHITECTURE_BYTES_MAX: usize = 64;

/// What the front of a state for a context has to say.
pub(super) struct Expected<'a> {
    /// Tokens that the context has room for.
    pub tokens_max: usize,
    /// The model's architecture; None where nobody knows which one llama.cpp expects.
    pub architecture: Option<&'a str>,
}

/// Looks at the front of `file`.
///
/// # Errors
/// Why no context that expects this can be had from it.
pub(super) fn check(
    file: &mut (impl Read + Seek),
    expected: &Expected<'_>,
) -> std::result::Result<(), String> {
    let bytes = file
        .seek(SeekFrom::End(0))
        .map_err(|error| error.to_string())?;
    file.rewind().map_err(|error| error.to_string())?;
    let (magic, version) = (number(file)?, number(file)?);
    if magic != ggml_sys::LLAMA_SESSION_MAGIC {
        return Err("it holds no state of llama.cpp's".to_owned());
    }
    if version != ggml_sys::LLAMA_SESSION_VERSION {
        return Err(format!(
            "it is of version {version}, and this llama.cpp reads version {}",
            ggml_sys::LLAMA_SESSION_VERSION
        ));
    }
    let count = number(file)?;
    let tokens_end = FRONT_BYTES + 4 * u64::from(count);
    if tokens_end > bytes {
        return Err(format!("it is cut off amid its {count} tokens"));
    }
    if count as usize > expected.tokens_max {
        return Err(format!(
            "it holds {count} tokens, and the context has room for {}; raise -c",
            expected.tokens_max
        ));
    }
    file.seek(SeekFrom::Start(tokens_end))
        .map_err(|error| error.to_string())?;
    let length = number(file)? as usize;
    let is_right = match expected.architecture {
        Some(architecture) => length == architecture.len(),
        None => length < ARCHITECTURE_BYTES_MAX,
    };
    if !is_right {
        return Err(other_model(expected));
    }
    let mut name = vec![0; length];
    file.read_exact(&mut name).map_err(|error| why(&error))?;
    match expected.architecture {
        Some(architecture) if name != architecture.as_bytes() => Err(other_model(expected)),
        _ => Ok(()),
    }
}

fn other_model(expected: &Expected<'_>) -> String {
    match expected.architecture {
        Some(architecture) => format!("it is of no '{architecture}' model"),
        None => "it names no model".to_owned(),
    }
}

fn number(file: &mut impl Read) -> std::result::Result<u32, String> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes).map_err(|error| why(&error))?;
    Ok(u32::from_ne_bytes(bytes))
}

fn why(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A front with these tokens and this architecture, and some memory behind it.
    fn front(tokens: &[u32], architecture: &str) -> Vec<u8> {
        let front = [
            ggml_sys::LLAMA_SESSION_MAGIC,
            ggml_sys::LLAMA_SESSION_VERSION,
            u32::try_from(tokens.len()).unwrap(),
        ];
        let length = [u32::try_from(architecture.len()).unwrap()];
        let numbers = front.iter().chain(tokens).chain(&length);
        let mut bytes: Vec<u8> = numbers.flat_map(|number| number.to_ne_bytes()).collect();
        bytes.extend(architecture.as_bytes());
        bytes.extend([0; 40]);
        bytes
    }

    fn checked(bytes: &[u8]) -> std::result::Result<(), String> {
        let expected = Expected {
            tokens_max: 4,
            architecture: Some("llama"),
        };
        check(&mut Cursor::new(bytes), &expected)
    }

    #[test]
    fn any_name_is_taken_where_none_is_known_but_not_any_length() {
        let checked = |bytes: &[u8]| {
            let expected = Expected {
                tokens_max: 4,
                architecture: None,
            };
            check(&mut Cursor::new(bytes), &expected)
        };
        let whole = front(&[1], "gemma");
        assert_eq!(checked(&whole), Ok(()));
        assert!(checked(&whole[..22]).unwrap_err().contains("cut off"));
        let long = front(&[1], &"x".repeat(64));
        assert!(checked(&long).unwrap_err().contains("no model"));
    }

    #[test]
    fn a_whole_front_is_taken() {
        for tokens in [&[][..], &[7], &[1, 2, 3, 4]] {
            assert_eq!(checked(&front(tokens, "llama")), Ok(()));
        }
    }

    #[test]
    fn a_front_cut_anywhere_is_refused() {
        let whole = front(&[1, 2, 3], "llama");
        for length in 0..whole.len() - 40 {
            let refused = checked(&whole[..length]).unwrap_err();
            assert!(refused.contains("cut off"), "{length}: {refused}");
        }
    }

    #[test]
    fn lengths_are_not_taken_at_their_word() {
        let whole = front(&[1, 2, 3], "llama");
        for (at, said) in [
            (0, "no state"),
            (4, "version"),
            (8, "cut off"),
            (24, "no 'llama' model"),
        ] {
            let mut damaged = whole.clone();
            damaged[at + 3] ^= 0x40;
            let refused = checked(&damaged).unwrap_err();
            assert!(refused.contains(said), "{at}: {refused}");
        }
        let refused = checked(&front(&[1, 2, 3, 4, 5], "llama")).unwrap_err();
        assert!(refused.contains("raise -c"), "{refused}");
        let refused = checked(&front(&[1], "gemma")).unwrap_err();
        assert!(refused.contains("no 'llama' model"), "{refused}");
    }
}
