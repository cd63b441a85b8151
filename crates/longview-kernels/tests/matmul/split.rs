//! Activations that are split, so that hardly anything is lost when they are rounded.

use longview_kernels::format::quantize;
use longview_kernels::{
    Activations, Exec, Format, Isa, Need, Numerics, Packed, matmul, matmul_many, needed,
};

fn packed(exec: &Exec, format: Format, n: usize, k: usize) -> Packed {
    let values: Vec<f32> = (0..n * k)
        .map(|i| ((i * 29 % 113) as f32 - 56.0) * 0.01)
        .collect();
    let mut bytes = Vec::new();
    quantize(format, &values, &mut bytes).unwrap();
    Packed::pack(format, n, k, &bytes, &|row| row, &exec.pool).unwrap()
}

#[test]
fn a_split_row_is_as_good_as_one_that_is_not_rounded() {
    let (n, k) = (40, 512);
    let x: Vec<f32> = (0..k)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) * if i % 97 == 5 { 3.0 } else { 0.037 })
        .collect();
    for isa in Isa::available() {
        let exec = Exec::new(2, isa, Numerics::Default);
        let exact = Exec::new(2, isa, Numerics::F32);
        // Scales for 32 and for 256 numbers, scales that are rounded, and no rounding at all.
        for format in [Format::Q8_0, Format::Q6_K, Format::Q4_0, Format::F16] {
            let w = packed(&exec, format, n, k);
            let product = |exec: &Exec, mut act: Activations| {
                act.set(exec, &x, 1, k, needed(exec.numerics, format));
                let mut out = vec![0.0; n];
                matmul(exec, &act, &w, &mut out);
                out
            };
            let wanted = product(&exact, Activations::new());
            let apart = |found: &[f32]| {
                let pairs = found.iter().zip(&wanted);
                let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
            };
            let split = apart(&product(&exec, Activations::split()));
            let rounded = apart(&product(&exec, Activations::new()));
            match format {
                Format::F16 => assert_eq!((split, rounded), (0.0, 0.0)),
                _ => assert!(split < 0.1 * rounded, "{isa} {format}: {split} {rounded}"),
            }
        }
    }
}

#[test]
fn rows_made_on_the_way_are_split_as_well_and_all_forms_together() {
    let k = 256;
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let ws = [Format::Q8_0, Format::Q4_K, Format::F16].map(|f| packed(&exec, f, 20, k));
    let need = ws.iter().fold(Need::default(), |need, w| {
        need.and(needed(exec.numerics, w.format()))
    });
    let mut x: Vec<f32> = (0..k).map(|i| (i % 13) as f32 - 5.7).collect();
    let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
    let mut given = Activations::split();
    given.set(&exec, &doubled, 1, k, need);
    let mut made = Activations::split();
    made.set_with(&exec, &mut x, 1, k, need, &|_, x, out| {
        for (out, x) in out.iter_mut().zip(x) {
            *out = 2.0 * *x;
        }
    });
    let products = |act: &Activations| {
        let mut outs = [vec![0.0; 20], vec![0.0; 20], vec![0.0; 20]];
        let mut views = outs.each_mut().map(Vec::as_mut_slice);
        matmul_many(&exec, act, &ws.each_ref(), &mut views);
        outs
    };
    assert_eq!(products(&made), products(&given));
    assert!(products(&made).iter().flatten().all(|x| x.abs() > 0.0));
}
