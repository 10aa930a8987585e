//! Round trips, damage, garbage.

use proptest::prelude::*;

use crate::seal::Bound;
use crate::shape::HEADER;
use crate::*;

/// One page, of any length, compressible or not.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![Just(0usize), Just(PAGE), 0..=PAGE, (PAGE - 40)..=PAGE];
    (len, any::<u64>(), 0u8..3).prop_map(|(len, seed, kind)| {
        let mut state = seed | 1;
        (0..len)
            .map(|i| match kind {
                0 => 0,
                1 => u8::try_from(((i as u64 / 7) ^ seed) & 0x3f).unwrap(),
                _ => {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()[3]
                }
            })
            .collect()
    })
}

fn pages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(page(), 0..=MAX_PAGES)
}

fn grain() -> impl Strategy<Value = Grain> {
    prop_oneof![Just(Grain::Fine), Just(Grain::Whole)]
}

fn is_same(page: &[u8], got: &[u8]) -> bool {
    got.len() >= page.len() && got[..page.len()] == page[..] && got[page.len()..].iter().all(|&b| b == 0)
}

fn encode(tag: u64, grain: Grain, pages: &[Vec<u8>]) -> (Encoded, Vec<u8>) {
    let mut encoder = Encoder::new(if tag.is_multiple_of(2) { Method::Lz4 } else { Method::Zstd });
    let (encoded, payload) = encoder.encode(tag, grain, pages.iter().map(Vec::as_slice));
    (encoded, payload.to_vec())
}

fn decode_all(encoded: &Encoded, tag: u64, payload: &[u8]) -> Result<(Pages, Vec<u8>), CodecError> {
    let mut out = vec![0xaa; MAX_CLUSTER];
    let pages = decode(encoded, tag, 0..encoded.strips(), payload, &mut out)?;
    Ok((pages, out))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // R25: short pages come back, and a payload is never much longer than its pages.
    #[test]
    fn round_trip(pages in pages(), grain in grain(), tag in any::<u64>(), from in 0usize..4, to in 1usize..5) {
        let (encoded, payload) = encode(tag, grain, &pages);
        prop_assert_eq!(payload.len(), encoded.len());
        prop_assert!(payload.len() <= pages.len() * PAGE + encoded.strips() * UNIT);
        let (decoded, out) = decode_all(&encoded, tag, &payload).unwrap();
        prop_assert_eq!(decoded.len(), pages.len());
        for (rank, page) in pages.iter().enumerate() {
            prop_assert!(is_same(page, &out[decoded.get(rank).unwrap()]));
        }
        // Some strips alone.
        let strips = from.min(encoded.strips())..to.min(encoded.strips());
        prop_assume!(!strips.is_empty());
        let mut out = vec![0xaa; encoded.room_for(&strips)];
        let bytes = &payload[encoded.bytes_of(strips.clone())];
        let decoded = decode(&encoded, tag, strips.clone(), bytes, &mut out).unwrap();
        for (rank, page) in pages.iter().enumerate() {
            let range = decoded.get(rank);
            prop_assert_eq!(range.is_some(), strips.contains(&encoded.strip_of(rank)));
            prop_assert!(range.is_none_or(|range| is_same(page, &out[range])));
        }
    }

    #[test]
    fn one_flipped_bit_is_always_seen(pages in pages(), grain in grain(), bit in any::<usize>()) {
        let (encoded, mut payload) = encode(7, grain, &pages);
        prop_assume!(!payload.is_empty());
        let bit = bit % (payload.len() * 8);
        let before = payload.clone();
        payload[bit / 8] ^= 1 << (bit % 8);
        match decode_all(&encoded, 7, &payload) {
            Err(CodecError::Broken { .. }) => {}
            // The padding of a strip up to its unit belongs to no page.
            Ok((decoded, out)) => {
                prop_assert_eq!(before[bit / 8], 0);
                for (rank, page) in pages.iter().enumerate() {
                    prop_assert!(is_same(page, &out[decoded.get(rank).unwrap()]));
                }
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn another_clusters_bytes_are_refused(a in pages(), b in pages(), grain in grain(), tag in any::<u64>()) {
        let (of_a, payload_a) = encode(tag, grain, &a);
        let (of_b, payload_b) = encode(tag ^ 2, grain, &b);
        if !of_a.is_empty() && payload_a != payload_b {
            prop_assert!(decode_all(&of_a, tag, &payload_b).is_err());
        }
        // Right shape and bytes, wrong place.
        prop_assert!(of_b.is_empty() || decode_all(&of_b, tag, &payload_b).is_err());
    }

    #[test]
    fn garbage_with_a_right_checksum_never_panics(
        body in prop::collection::vec(any::<u8>(), 0..9000),
        pages in 0u8..40,
        count in 0u8..32,
        flags in 0u32..16,
        fine in any::<bool>(),
    ) {
        let shape = u32::try_from(body.len()).unwrap() | u32::from(count) << 20 | flags << 25;
        let mut mark = [0; 4];
            Seal::Crc.close(Bound { tag: 1, strip: 0, shape }, &mut body.clone(), &mut mark);
            let mut payload = mark.to_vec();
        payload.extend(shape.to_le_bytes());
        payload.extend(&body);
        payload.resize(payload.len().next_multiple_of(UNIT), 0);
        let end = u16::try_from(payload.len() / UNIT).unwrap();
        let grain = if fine { Grain::Fine } else { Grain::Whole };
        let pages = pages.min(u8::try_from(grain.pages()).unwrap());
        let encoded = Encoded { ends: [end; 4], pages, grain };
        if let Ok((pages, out)) = decode_all(&encoded, 1, &payload) {
            prop_assert!((0..pages.len()).all(|rank| out.get(pages.get(rank).unwrap()).is_some()));
        }
    }
}

#[test]
fn a_short_page_takes_its_real_length() {
    let (encoded, payload) = encode(1, Grain::Whole, &[(0..100).collect(), (100..150).collect()]);
    assert_eq!(encoded.len(), (HEADER + 4 + 150).next_multiple_of(UNIT));
    let (pages, _) = decode_all(&encoded, 1, &payload).unwrap();
    assert_eq!((pages.get(0), pages.get(1), pages.get(2)), (Some(4..104), Some(104..154), None));
}

#[test]
fn what_does_not_shrink_stays_raw() {
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(MAX_CLUSTER)
    .collect();
    let pages: Vec<Vec<u8>> = noise.chunks(PAGE).map(<[u8]>::to_vec).collect();
    assert_eq!(encode(1, Grain::Fine, &pages).0.len(), MAX_PAYLOAD);
    let same = vec![vec![5; PAGE]; 16];
    assert!(encode(1, Grain::Whole, &same).0.len() < 400);
    let mut never = Encoder::new(Method::None);
    assert_eq!(never.encode(1, Grain::Fine, same.iter().map(Vec::as_slice)).1.len(), MAX_PAYLOAD);
}

#[test]
fn short_buffers_are_errors() {
    let (encoded, payload) = encode(1, Grain::Fine, &[vec![1; PAGE], vec![2; 10]]);
    let mut out = vec![0; MAX_CLUSTER];
    let short = decode(&encoded, 1, 0..1, &payload[..payload.len() - 1], &mut out);
    assert!(matches!(short, Err(CodecError::Short { .. })));
    let short = decode(&encoded, 1, 0..1, &payload, &mut out[..10]);
    assert!(matches!(short, Err(CodecError::Short { have: 10, .. })));
}
