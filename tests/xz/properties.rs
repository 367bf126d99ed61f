//! Properties of every file: the same bytes as from liblzma, or an error where liblzma has one.

use liblzma::stream::Check;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::files::{MEMORY, decode, decompressed_size, noise, parallel, reference, serial, text};

/// A piece of a disk.
fn part() -> impl Strategy<Value = Vec<u8>> {
    (0..3, any::<u64>(), 0..400_000_usize).prop_map(|(kind, seed, len)| match kind {
        0 => vec![0; len],
        1 => noise(seed, len / 4),
        _ => text(seed, len),
    })
}

fn check() -> impl Strategy<Value = Check> {
    prop_oneof![
        Just(Check::None),
        Just(Check::Crc32),
        Just(Check::Crc64),
        Just(Check::Sha256)
    ]
}

/// One stream and the zeros behind it.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::collection::vec(part(), 0..5);
    let block = prop_oneof![2_000..60_000_usize, 60_000..1_000_000_usize, Just(1 << 19)];
    (parts, block, 0..=6_u32, check(), 0..3, 0..4_usize).prop_map(|(parts, block, preset, check, kind, padding)| {
        let content = parts.concat();
        let mut bytes = match kind {
            0 => serial(&content, block, preset, check, false),
            1 => serial(&content, block, preset, check, true),
            _ => parallel(&content, block as u64, preset, check),
        };
        bytes.resize(bytes.len() + 4 * padding, 0);
        bytes
    })
}

pub fn file() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(stream(), 1..4).prop_map(|streams| streams.concat())
}

fn memory() -> impl Strategy<Value = u64> {
    prop_oneof![Just(MEMORY), Just(66 << 20), Just(16 << 20)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_file_decodes_as_in_liblzma(file in file(), ordered: bool, memory in memory()) {
        let expected = reference(&file).unwrap();
        let runtime = Runtime::new().unwrap();
        let decoded = runtime.block_on(decode(&file, ordered, memory)).unwrap();
        prop_assert!(decoded == expected);
        let told = runtime.block_on(decompressed_size(&file)).unwrap();
        prop_assert_eq!(told, expected.len() as u64);
    }

    /// Also after a byte was changed, lost, or added, both say the same.
    #[test]
    fn a_damaged_file_is_judged_as_by_liblzma(
        file in stream(), at: prop::sample::Index, value: u8, kind in 0..4, ordered: bool, memory in memory(),
    ) {
        let mut file = file;
        // The magic decides what the file is taken for.
        let at = 6 + at.index(file.len() - 6);
        match kind {
            0 => file[at] = value,
            1 => drop(file.remove(at)),
            2 => file.insert(at, value),
            _ => file.truncate(at),
        }
        let expected = reference(&file).ok();
        let decoded = Runtime::new().unwrap().block_on(decode(&file, ordered, memory)).ok();
        prop_assert!(decoded == expected);
    }

    /// Random bytes behind a good header.
    #[test]
    fn rubbish_never_breaks_it(rubbish in prop::collection::vec(any::<u8>(), 0..2000), ordered: bool) {
        let start = parallel(&[], 1 << 20, 0, Check::Crc64);
        let file = [&start[..12], &rubbish].concat();
        let expected = reference(&file).ok();
        let decoded = Runtime::new().unwrap().block_on(decode(&file, ordered, MEMORY)).ok();
        prop_assert!(decoded == expected);
    }
}
