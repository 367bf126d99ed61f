//! The compose id: family, release, date, respin.
//!
//! The id alone tells the family. Its forms are those of
//! [productmd](https://productmd.readthedocs.io/en/latest/common.html) as Fedora uses them.

use std::cmp::Ordering;
use std::fmt;

use jiff::civil::Date;

/// A line of composes that are made in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `Fedora-Rawhide-D.n.R`
    Rawhide,
    /// `Fedora-eln-D.n.R`
    Eln,
    /// `Fedora-N-D.n.R`: nightly of a branched release.
    Branched,
    /// `Fedora-N-D.R`: a candidate for a milestone, named by its label.
    Candidate,
    /// `Fedora-Cloud-N-D.R`: nightly after the release.
    Cloud,
    /// `Fedora-Container-N-D.R`: nightly after the release.
    Container,
    /// `Fedora-IoT-N-D.R`
    Iot,
    /// `Fedora-N-updates-D.R`
    Updates,
}

impl Family {
    /// Whether its composes carry disk images for clouds.
    ///
    /// Nightlies of several families share numbers and dates, so that their images would share names in the clouds;
    /// only one of them, Cloud, makes such images.
    #[must_use]
    pub fn makes_cloud_images(self) -> bool {
        match self {
            Self::Rawhide | Self::Eln | Self::Branched | Self::Candidate | Self::Cloud => true,
            Self::Container | Self::Iot | Self::Updates => false,
        }
    }
}

/// A compose's identity. Ordered by date, then respin, across families; equal only when the text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeId {
    text: String,
    /// How it is made.
    pub family: Family,
    /// The release number in the id; Rawhide and ELN have none.
    pub number: Option<u32>,
    /// The day it was made.
    pub date: Date,
    /// Which one of that day.
    pub respin: u32,
}

/// Why an id is not worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// Extra packages for other distributions; never images.
    #[error("EPEL composes have no images")]
    Epel,
    /// Candidates of updates; their images are made for tests only.
    #[error("updates-testing composes are not published")]
    UpdatesTesting,
    /// No known form.
    #[error("no family of composes is known by this id")]
    Unknown,
}

impl ComposeId {
    /// Reads an id.
    ///
    /// # Errors
    ///
    /// An id of a family that this service does not publish, or of no known form.
    pub fn parse(text: &str) -> Result<Self, NotOurs> {
        let rest = text.strip_prefix("Fedora-").ok_or(NotOurs::Unknown)?;
        let lower = rest.to_ascii_lowercase();
        if lower.starts_with("epel-") {
            return Err(NotOurs::Epel);
        }
        let (line, stamp) = rest.rsplit_once('-').ok_or(NotOurs::Unknown)?;
        let (date, nightly, respin) = stamp_of(stamp).ok_or(NotOurs::Unknown)?;
        let (family, number) = match line.split('-').collect::<Vec<_>>()[..] {
            ["Rawhide"] if nightly => (Family::Rawhide, None),
            ["eln" | "ELN"] if nightly => (Family::Eln, None),
            [number] if nightly => (Family::Branched, Some(number)),
            [number] => (Family::Candidate, Some(number)),
            ["Cloud", number] if !nightly => (Family::Cloud, Some(number)),
            ["Container", number] if !nightly => (Family::Container, Some(number)),
            ["IoT", number] if !nightly => (Family::Iot, Some(number)),
            [number, "updates"] if !nightly => (Family::Updates, Some(number)),
            [number, "updates", "testing"] if !nightly && release_number(number).is_some() => {
                return Err(NotOurs::UpdatesTesting);
            }
            _ => return Err(NotOurs::Unknown),
        };
        let number = match number {
            Some(number) => Some(release_number(number).ok_or(NotOurs::Unknown)?),
            None => None,
        };
        Ok(Self {
            text: text.to_owned(),
            family,
            number,
            date,
            respin,
        })
    }

    /// The id as it was read.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The date as it stands in the id: `20251023`.
    #[must_use]
    pub fn date_digits(&self) -> String {
        self.date.strftime("%Y%m%d").to_string()
    }

    /// Which of two composes was made later, whatever their families; `Equal` does not mean the same compose.
    #[must_use]
    pub fn age(&self, other: &Self) -> Ordering {
        (self.date, self.respin).cmp(&(other.date, other.respin))
    }
}

impl fmt::Display for ComposeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Digits only, as Fedora counts its releases, without a leading zero: `043` must not become another name of `43`.
fn release_number(text: &str) -> Option<u32> {
    plain_number(text).filter(|number| *number > 0)
}

fn plain_number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// `20251023.0` or `20251023.n.0`: the date, whether it is a nightly, the respin.
fn stamp_of(stamp: &str) -> Option<(Date, bool, u32)> {
    let (date, nightly, respin) = match stamp.split('.').collect::<Vec<_>>()[..] {
        [date, respin] => (date, false, respin),
        [date, "n", respin] => (date, true, respin),
        _ => return None,
    };
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let date = Date::strptime("%Y%m%d", date).ok()?;
    Some((date, nightly, plain_number(respin)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_known_by_its_id() {
        let table = [
            ("Fedora-Rawhide-20240829.n.1", Family::Rawhide, None, 1),
            ("Fedora-eln-20250722.n.2", Family::Eln, None, 2),
            ("Fedora-43-20250908.n.0", Family::Branched, Some(43), 0),
            ("Fedora-43-20251023.0", Family::Candidate, Some(43), 0),
            ("Fedora-Cloud-27-20180317.0", Family::Cloud, Some(27), 0),
            ("Fedora-Container-41-20250718.0", Family::Container, Some(41), 0),
            ("Fedora-IoT-42-20251215.10", Family::Iot, Some(42), 10),
            ("Fedora-42-updates-20250822.0", Family::Updates, Some(42), 0),
        ];
        for (text, family, number, respin) in table {
            let id = ComposeId::parse(text).unwrap();
            assert_eq!((id.family, id.number, id.respin), (family, number, respin), "{text}");
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn an_id_of_another_publisher_says_why() {
        let table = [
            ("Fedora-EPEL-10.2-updates-testing-20251214.0", NotOurs::Epel),
            ("Fedora-Epel-Next-9-updates-20251219.0", NotOurs::Epel),
            ("Fedora-42-updates-testing-20251105.0", NotOurs::UpdatesTesting),
            ("Fedora-Modular-Bikeshed-20180215.n.0", NotOurs::Unknown),
            ("Fedora-43-20251332.0", NotOurs::Unknown),
            ("Fedora-43-2025102.0", NotOurs::Unknown),
            ("Fedora-43-20251023.x.0", NotOurs::Unknown),
            ("Fedora-43-20251023", NotOurs::Unknown),
            ("Fedora-043-20251023.0", NotOurs::Unknown),
            ("Fedora-43-20251023.00", NotOurs::Unknown),
            ("Fedora-43-20251023.4294967296", NotOurs::Unknown),
            ("Fedora--20251023.0", NotOurs::Unknown),
            ("Fedora-Cloud-27-20180317.n.0", NotOurs::Unknown),
            ("Fedora-43-../20251023.0", NotOurs::Unknown),
            ("CentOS-Stream-9-20251023.0", NotOurs::Unknown),
            ("", NotOurs::Unknown),
        ];
        for (text, why) in table {
            assert_eq!(ComposeId::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn age_counts_days_then_respins() {
        let id = |text| ComposeId::parse(text).unwrap();
        let newer = [
            ("Fedora-Container-43-20251102.0", "Fedora-43-20251101.5"),
            ("Fedora-43-20251023.10", "Fedora-43-20251023.9"),
        ];
        for (later, earlier) in newer {
            assert_eq!(id(later).age(&id(earlier)), Ordering::Greater);
        }
        let same_day = (id("Fedora-Cloud-43-20251101.0"), id("Fedora-Container-43-20251101.0"));
        assert_eq!(same_day.0.age(&same_day.1), Ordering::Equal);
        assert_ne!(same_day.0, same_day.1);
    }
}
