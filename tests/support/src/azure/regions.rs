//! The regions, by the two names that each has.

const DISPLAY: [&str; 38] = [
    "Australia East",
    "Australia Southeast",
    "Brazil South",
    "Canada Central",
    "Canada East",
    "Central India",
    "Central US",
    "East Asia",
    "East US",
    "East US 2",
    "France Central",
    "Germany West Central",
    "Israel Central",
    "Italy North",
    "Japan East",
    "Japan West",
    "Korea Central",
    "Mexico Central",
    "New Zealand North",
    "North Central US",
    "North Europe",
    "Norway East",
    "Poland Central",
    "Qatar Central",
    "South Africa North",
    "South Central US",
    "South India",
    "Southeast Asia",
    "Spain Central",
    "Sweden Central",
    "Switzerland North",
    "UAE North",
    "UK South",
    "UK West",
    "West Europe",
    "West US",
    "West US 2",
    "West US 3",
];

/// `East US` and `eastus` are one region.
pub(super) fn canonical(name: &str) -> String {
    name.replace(' ', "").to_lowercase()
}

/// As answers name it; none for a region that does not exist.
pub(super) fn display(name: &str) -> Option<&'static str> {
    let wanted = canonical(name);
    DISPLAY.into_iter().find(|display| canonical(display) == wanted)
}
