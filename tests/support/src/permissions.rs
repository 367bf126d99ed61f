//! Holds what a program calls against what its role permits, in both directions.

use std::collections::BTreeSet;

/// A call's name in the record of the fake, the permissions it needs, and where the cloud's own reference says so.
#[derive(Clone, Copy, Debug)]
pub struct Need(pub &'static str, pub &'static [&'static str], pub &'static str);

/// The differences, one line each: calls that are missing in the table or never made, permissions that are missing in
/// the role or that nothing needs.
pub fn differences<'a>(
    table: &[Need],
    calls: impl IntoIterator<Item = &'a str>,
    granted: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let known: BTreeSet<&str> = table.iter().map(|Need(call, ..)| *call).collect();
    let needed: BTreeSet<&str> = table
        .iter()
        .flat_map(|Need(_, permissions, _)| *permissions)
        .copied()
        .collect();
    let made = calls.into_iter().collect();
    let granted = granted.into_iter().collect();
    let lines = |left: &BTreeSet<&str>, right: &BTreeSet<&str>, what: &str| -> Vec<String> {
        left.difference(right).map(|name| format!("{name} {what}")).collect()
    };
    [
        lines(&made, &known, "is called, and is not in the table"),
        lines(&known, &made, "is in the table, and is never called"),
        lines(&needed, &granted, "is needed, and the role lacks it"),
        lines(&granted, &needed, "is in the role, and nothing needs it"),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_told() {
        let table = [Need("get", &["read"], ""), Need("put", &["read", "write"], "")];
        assert!(differences(&table, ["get", "put"], ["write", "read"]).is_empty());
        assert_eq!(
            differences(&table, ["get", "delete"], ["read", "delete"]),
            [
                "delete is called, and is not in the table",
                "put is in the table, and is never called",
                "write is needed, and the role lacks it",
                "delete is in the role, and nothing needs it",
            ]
        );
    }
}
