//! Just enough of a calendar: minutes and days since the start of 1970, in one time zone.

/// Minutes since the start of 1970.
pub(crate) type Minute = i64;

/// Days since the start of 1970.
pub(crate) type Day = u32;

pub(crate) const MINUTES_PER_DAY: Minute = 24 * 60;

/// The day a minute is in. Time before 1970 and after the last day counts as the nearest day.
pub(crate) fn day_of(minute: Minute) -> Day {
    let day = minute.div_euclid(MINUTES_PER_DAY).clamp(0, Day::MAX.into());
    day as Day
}

/// Reads a time like `2001-01-31 23:59`.
pub(crate) fn parse_minute(text: &str) -> Option<Minute> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse().ok());
    let (year, month, day): (u32, u32, u32) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute) = time.split_once(':')?;
    let (hour, minute): (Minute, Minute) = (hour.parse().ok()?, minute.parse().ok()?);

    let is_date = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute);
    is_date.then(|| {
        let days = days_before_year(year) + (1..month).map(|month| days_in_month(year, month)).sum::<Day>() + day - 1;
        Minute::from(days) * MINUTES_PER_DAY + hour * 60 + minute
    })
}

/// Writes a day like `2001-01-31`.
pub(crate) fn format_day(day: Day) -> String {
    let (mut year, mut month) = (1970 + day / 366, 1);
    while days_before_year(year + 1) <= day {
        year += 1;
    }
    let mut rest = day - days_before_year(year);
    while rest >= days_in_month(year, month) {
        rest -= days_in_month(year, month);
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", rest + 1)
}

/// Days from the start of 1970 to that of `year`.
fn days_before_year(year: u32) -> Day {
    let leap_years = |before: u32| (before - 1) / 4 - (before - 1) / 100 + (before - 1) / 400;
    (year - 1970) * 365 + leap_years(year) - leap_years(1970)
}

fn days_in_month(year: u32, month: u32) -> Day {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
