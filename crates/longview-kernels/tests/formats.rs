//! Every format against a reference dequantisation (made by tools/make_format_fixtures.py).

use std::path::Path;

use longview_kernels::Format;
use longview_kernels::format::dequantize;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/formats")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All fifteen formats give the reference's bits; only the payload of a NaN may differ.
#[test]
fn dequantize_gives_the_bits_of_the_reference() {
    for format in Format::ALL {
        let blocks = fixture(&format!("{format}.blocks"));
        let reference = fixture(&format!("{format}.f32"));
        let reference: Vec<f32> = reference
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        assert!(
            reference.len() >= 1024,
            "{format}: the fixture is too small"
        );

        let mut values = vec![f32::NAN; reference.len()];
        dequantize(format, &blocks, &mut values);
        for (i, (got, want)) in values.iter().zip(&reference).enumerate() {
            let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
            assert!(
                same,
                "{format}: element {i} is {got:e}, the reference says {want:e}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "33 elements of Q4_0 do not fill 18 bytes")]
fn dequantize_refuses_partial_blocks() {
    dequantize(Format::Q4_0, &[0; 18], &mut [0.0; 33]);
}
