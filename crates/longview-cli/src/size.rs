//! Sizes and numbers as people write and read them.

/// Bytes from text such as `8GiB`, `12GB`, `512M` or `1000000`. `GB` counts in thousands, `GiB` and
/// the bare letter `G` in 1,024s.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("{text:?} is not a size; write a number with a unit, such as 8GiB, 12GB or 512MiB")
    };
    let text_trimmed = text.trim();
    let digits = text_trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if !(1.0..=1e18).contains(&bytes) {
        return Err(format!(
            "{text:?} is no size that can be meant; give 1 B to 1 EB"
        ));
    }
    Ok(bytes as u64)
}

/// Seconds from text such as `90m`, `12h`, `30d` or `2w`.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is not a time; write a number with a unit, such as 12h or 30d");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor: u64 = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .filter(|&seconds| seconds > 0)
        .ok_or_else(wrong)
}

/// A time as people say it, in its largest unit, such as `3 d`.
pub(crate) fn human_duration(seconds: u64) -> String {
    let units = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "min")];
    let unit = units.into_iter().find(|&(length, _)| seconds >= length);
    match unit {
        Some((length, name)) => format!("{} {name}", seconds / length),
        None => format!("{seconds} s"),
    }
}

/// A whole number of tokens from text such as `4096`, `4k` or `1M`; k and M count in 1,024s, as
/// context lengths do.
pub(crate) fn parse_tokens(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a number of tokens; write 4096 or 4k");
    let text = text.trim();
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let number: usize = number
        .replace(['_', ','], "")
        .parse()
        .map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .filter(|&tokens| tokens <= 1 << 40)
        .ok_or_else(wrong)
}

/// A whole number with thousands apart, such as `150,000`.
pub(crate) fn human_count(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_either_kind_of_unit() {
        assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes("12 GB"), Ok(12_000_000_000));
        assert_eq!(parse_bytes("1.5g"), Ok(3 << 29));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for text in [
            "",
            "GiB",
            "eight",
            "8 gigs",
            "-1GiB",
            "0",
            "1e9",
            "9999999TiB",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn token_counts_are_read_in_1024s() {
        assert_eq!(parse_tokens("4k"), Ok(4096));
        assert_eq!(parse_tokens("1M"), Ok(1 << 20));
        assert_eq!(parse_tokens("16,384"), Ok(16_384));
        for text in ["", "k", "-4", "4.5k", "99999999999999999999", "10000000M"] {
            assert!(parse_tokens(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read_and_shown() {
        assert_eq!(parse_duration("90m"), Ok(5400));
        assert_eq!(parse_duration("30 d"), Ok(2_592_000));
        for text in ["", "d", "0d", "5", "5y", "-1h", "99999999999999999999w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(human_duration(59), "59 s");
        assert_eq!(human_duration(3599), "59 min");
        assert_eq!(human_duration(200_000), "2 d");
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(human_count(0), "0");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(1_048_576), "1,048,576");
    }
}
