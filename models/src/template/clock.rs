//! The date for templates that write it.

use minijinja::{Error, ErrorKind};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Years 1970 to 9999.
const SECONDS_MAX: u64 = 253_402_300_799;

/// Python's `strftime` in UTC, with the directives that templates use.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let seconds = seconds.min(SECONDS_MAX);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let month_name = usize::try_from(month - 1).ok().and_then(|m| MONTHS.get(m)).copied().unwrap_or_default();
    let day_name = DAYS[((days + 4) % 7) as usize];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => format!("{year:04}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name.chars().take(3).collect(),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let problem = format!("strftime_now does not know %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`, for days not before 1970).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, of_year - (153 * m + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let check = |seconds, expect: &str| {
            assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a %d %b %Y %I%p %%", seconds).unwrap(), expect);
        };
        check(0, "1970-01-01 00:00:00 Thu 01 Jan 1970 12AM %");
        check(951_827_696, "2000-02-29 12:34:56 Tue 29 Feb 2000 12PM %");
        check(1_795_391_999, "2026-11-22 23:59:59 Sun 22 Nov 2026 11PM %");
        check(1_709_164_800 - 1, "2024-02-28 23:59:59 Wed 28 Feb 2024 11PM %");
        check(u64::MAX, "9999-12-31 23:59:59 Fri 31 Dec 9999 11PM %");
        assert_eq!(
            strftime("%A, %e %B %y, %F %T %Z", 1_709_251_200).unwrap(),
            "Friday,  1 March 24, 2024-03-01 00:00:00 UTC"
        );
    }

    #[test]
    fn an_unknown_directive_is_an_error_that_names_it() {
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("%Q"));
        assert!(strftime("%", 0).is_err());
    }
}
