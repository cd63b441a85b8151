//! A fixed date and time for templates that print one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A date and time of day without a zone. A context keeps the one it was created with, so that
/// its prompt never changes under it.
///
/// Written and read as `2026-11-26T14:30:00`; a date alone is its midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment {
    year: i64,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    /// Seconds since midnight.
    second: u32,
    /// Days since 1970-01-01.
    days: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

impl Moment {
    /// The moment `seconds` after 1970-01-01 00:00, of the zone those seconds are counted in.
    /// Years beyond ±1,000,000 are cut to that range.
    pub fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(-31_556_952_000_000, 31_556_952_000_000);
        let days = seconds.div_euclid(86_400);
        let second = seconds.rem_euclid(86_400) as u32;
        // Count from 0000-03-01, so that the leap day is the last of its year.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self {
            year,
            month: month as u32,
            day,
            second,
            days,
        }
    }

    /// Midnight of the day `days` days before this one.
    #[must_use]
    pub fn days_before(&self, days: i64) -> Self {
        Self::from_unix(self.days.saturating_sub(days).saturating_mul(86_400))
    }

    /// The moment written by a `strftime` format in the C locale.
    ///
    /// # Errors
    /// The first directive that is not supported.
    pub fn strftime(&self, format: &str) -> Result<String, String> {
        let mut out = String::with_capacity(format.len() * 2);
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('-') => {
                    let directive = chars.next().unwrap_or(' ');
                    let padded = self.directive(directive)?;
                    let bare = padded.trim_start_matches(['0', ' ']);
                    out.push_str(if bare.is_empty() && !padded.is_empty() {
                        "0"
                    } else {
                        bare
                    });
                }
                Some(directive) => out.push_str(&self.directive(directive)?),
                None => out.push('%'),
            }
        }
        Ok(out)
    }

    fn directive(&self, directive: char) -> Result<String, String> {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        // 1970-01-01 was a Thursday.
        let weekday = (self.days.rem_euclid(7) as usize + 3) % 7;
        let hour12 = (hour + 11) % 12 + 1;
        Ok(match directive {
            'Y' => format!("{:04}", self.year),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year()),
            'B' => MONTHS[self.month as usize - 1].to_owned(),
            'b' | 'h' => MONTHS[self.month as usize - 1][..3].to_owned(),
            'A' => WEEKDAYS[weekday].to_owned(),
            'a' => WEEKDAYS[weekday][..3].to_owned(),
            'u' => (weekday + 1).to_string(),
            'w' => ((weekday + 1) % 7).to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour12:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => self.strftime("%Y-%m-%d")?,
            'T' | 'X' => self.strftime("%H:%M:%S")?,
            'R' => self.strftime("%H:%M")?,
            'D' | 'x' => self.strftime("%m/%d/%y")?,
            'c' => self.strftime("%a %b %e %H:%M:%S %Y")?,
            // No zone: Python writes nothing for a time without one.
            'z' | 'Z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => return Err(format!("the date directive %{other} is not supported")),
        })
    }

    /// 1 to 366.
    fn day_of_year(&self) -> u32 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let lengths = [
            31,
            if leap { 29 } else { 28 },
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ];
        lengths[..self.month as usize - 1].iter().sum::<u32>() + self.day
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)?;
        match self.second {
            0 => Ok(()),
            _ => write!(f, "T{hour:02}:{minute:02}:{second:02}"),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parsed(text.trim()).ok_or_else(|| {
            format!(
                "{text:?} is no date; write 2026-11-26, or 2026-11-26T14:30 with the time of day"
            )
        })
    }
}

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

fn parsed(text: &str) -> Option<Moment> {
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    // A year may begin with a minus.
    let mut parts = date.rsplitn(3, '-');
    let day: i64 = parts.next()?.parse().ok()?;
    let month: i64 = parts.next()?.parse().ok()?;
    let year: i64 = parts.next()?.parse().ok()?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range || !(-1_000_000..=1_000_000).contains(&year) {
        return None;
    }
    let mut second = 0;
    let mut clock = time.split(':');
    for (most, seconds) in [(24, 3600), (60, 60), (60, 1)] {
        let part: i64 = match (clock.next(), seconds) {
            (Some(part), _) => part.parse().ok()?,
            (None, 1) => 0,
            (None, _) => return None,
        };
        if !(0..most).contains(&part) {
            return None;
        }
        second += part * seconds;
    }
    if clock.next().is_some() {
        return None;
    }
    let moment = Moment::from_unix(days_since_1970(year, month, day) * 86_400 + second);
    // The thirtieth of February is another day.
    (i64::from(moment.day) == day && i64::from(moment.month) == month).then_some(moment)
}

/// Counted from 0000-03-01 on, so that the leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for seconds in [0, -1, 951_782_400 + 3_661, 1_764_115_200, -62_200_000_000] {
            let moment = Moment::from_unix(seconds);
            assert_eq!(moment.to_string().parse(), Ok(moment), "{moment}");
        }
        let day: Moment = "2026-11-26".parse().unwrap();
        assert_eq!(day.to_string(), "2026-11-26");
        assert_eq!("2026-11-26T00:00".parse(), Ok(day));
        let later: Moment = " 2026-11-26 14:30 ".parse().unwrap();
        assert_eq!(later.to_string(), "2026-11-26T14:30:00");
        assert_eq!(later.days_before(0), day);
        assert_eq!(later.days_before(26).to_string(), "2026-10-31");
        let json = serde_json::to_string(&later).unwrap();
        assert_eq!(serde_json::from_str::<Moment>(&json).unwrap(), later);
        for wrong in [
            "",
            "today",
            "2026",
            "2026-11",
            "2026-02-30",
            "2026-13-01",
            "2026-11-26T24:00",
            "2026-11-26T10",
            "2026-11-26T10:00:00:00",
            "99999999999-01-01",
        ] {
            let refused = wrong.parse::<Moment>().unwrap_err();
            assert!(refused.contains("is no date"), "{wrong}: {refused}");
        }
    }

    #[test]
    fn dates_of_known_seconds() {
        let cases = [
            (0, "Thursday 1970-01-01 00:00:00 001"),
            (951_782_400 + 3_661, "Tuesday 2000-02-29 01:01:01 060"),
            (1_732_395_599, "Saturday 2024-11-23 20:59:59 328"),
            (-1, "Wednesday 1969-12-31 23:59:59 365"),
            (4_102_444_800, "Friday 2100-01-01 00:00:00 001"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(
                Moment::from_unix(seconds).strftime("%A %F %T %j").unwrap(),
                expected
            );
        }
    }

    #[test]
    fn directives_templates_use() {
        let moment = Moment::from_unix(1_722_816_305);
        let text = moment
            .strftime("%d %b %Y|%-d %B %y|%I:%M %p|%e|%-H|100%%|%a|%x %X")
            .unwrap();
        assert_eq!(
            text,
            "05 Aug 2024|5 August 24|12:05 AM| 5|0|100%|Mon|08/05/24 00:05:05"
        );
        assert!(moment.strftime("%Q").is_err());
        assert_eq!(moment.strftime("50%").unwrap(), "50%");
        Moment::from_unix(i64::MIN);
        Moment::from_unix(i64::MAX);
    }
}
