//! R35: encoding and decoding take no heap memory, checked by a counting allocator.

mod counting;

use counting::heap_calls;
use overspill_codec::{Encoder, Grain, MAX_CLUSTER, Method, PAGE, decode};

#[test]
fn encoding_and_decoding_allocate_nothing() {
    let mut encoders = [Method::Lz4, Method::Zstd].map(Encoder::new);
    let mut back = vec![0u8; MAX_CLUSTER];
    let mut noise = vec![0u8; MAX_CLUSTER];
    let mut random = 1u32;
    for byte in &mut noise {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = random.to_be_bytes()[0];
    }
    let mixed: Vec<u8> =
        noise.iter().enumerate().map(|(i, b)| if i % 5000 < 3000 { 3 } else { *b }).collect();
    // Decoding zstd's strips allocates once per thread.
    let (encoded, payload) = encoders[1].encode(1, Grain::Fine, [&mixed[..PAGE]]);
    decode(&encoded, 1, 0..1, payload, &mut back).unwrap();
    let calls = heap_calls(|| {
        for (data, encoder) in [&noise, &mixed].into_iter().flat_map(|data| (0..2).map(move |e| (data, e))) {
            let encoder = &mut encoders[encoder];
            for pages in 0..=16 {
                for page_len in [PAGE, 4090, 1000, 1] {
                    let list = data.chunks(PAGE).take(pages).map(|p| &p[..page_len]);
                    let grain = if pages % 2 == 0 { Grain::Fine } else { Grain::Whole };
                    let (encoded, payload) = encoder.encode(5, grain, list);
                    assert!(decode(&encoded, 5, 0..encoded.strips(), payload, &mut back).is_ok());
                }
            }
        }
    });
    assert_eq!(calls, 0);
}
