//! Pictures, looked at by their pixels and elements.

use std::io::Cursor;

use super::*;

const RED: RGBAColor = RGBAColor(230, 25, 75, 1.0);

/// A falling curve of this name.
fn curve(name: &str) -> Curve {
    Curve {
        name: name.to_owned(),
        points: (1..=100)
            .map(|step| (f64::from(step), 9.0 / f64::from(step)))
            .collect(),
        color: RED,
        width: 2,
    }
}

/// Width, height and pixels of a PNG.
fn decode(file: &[u8]) -> (usize, usize, Vec<[u8; 3]>) {
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(frame.color_type, png::ColorType::Rgb);
    let pixels = bytes.as_chunks::<3>().0.to_vec();
    (frame.width as usize, frame.height as usize, pixels)
}

/// Dark pixels within a rectangle of a picture.
fn ink(file: &[u8], x: std::ops::Range<usize>, y: std::ops::Range<usize>) -> usize {
    let (width, _, pixels) = decode(file);
    y.flat_map(|y| &pixels[y * width..][x.clone()])
        .filter(|pixel| pixel.iter().all(|channel| *channel < 128))
        .count()
}

#[test]
fn both_formats_draw_the_same_picture() {
    let curves = [curve("runs/a: validation"), curve("runs/b: validation")];
    let text = String::from_utf8(svg(&curves, false).unwrap()).unwrap();
    assert!(text.contains("runs/a: validation") && text.contains("loss, nats per token"));
    assert_eq!(
        text.matches(r##"stroke="#E6194B""##).count(),
        4,
        "two curves, two legends"
    );
    let file = bitmap(&curves, false).unwrap();
    let (width, height, pixels) = decode(&file);
    assert_eq!((width, height), (1920, 1200));
    let reds = pixels
        .iter()
        .filter(|pixel| **pixel == [RED.0, RED.1, RED.2]);
    assert!(reds.count() > 1000);
    // Labels beside and below the axes are drawn by the font within the program.
    assert!(ink(&file, 0..130, 0..1060) > 300);
    assert!(ink(&file, 160..1900, 1096..1200) > 300);
}

#[test]
fn the_names_of_the_runs_are_written_into_a_png() {
    let legend = |name: &str| ink(&bitmap(&[curve(name)], false).unwrap(), 960..1900, 20..120);
    assert!(legend("a name of some length") > legend("short") + 100);
}

#[test]
fn steps_may_be_on_a_logarithmic_axis() {
    let curves = [curve("run")];
    let (linear, log) = (
        bitmap(&curves, false).unwrap(),
        bitmap(&curves, true).unwrap(),
    );
    // Over most of a linear axis the loss has fallen already; on the other it goes on falling.
    let middle = |file: &[u8]| {
        let (width, _, pixels) = decode(file);
        let red = |y: &usize| pixels[y * width + width / 2] == [RED.0, RED.1, RED.2];
        (0..1100).find(red).unwrap()
    };
    assert!(middle(&linear) > middle(&log) + 50);
}

#[test]
fn runs_without_a_loss_are_no_picture() {
    let empty = Curve {
        points: Vec::new(),
        ..curve("run")
    };
    let message = bitmap(&[empty], false).unwrap_err();
    assert_eq!(message, "the runs have measured no losses");
}

#[test]
fn the_suffix_says_the_format() {
    let of = |name: &str| Format::of(Path::new(name));
    assert_eq!(of("a/losses.svg").unwrap(), Format::Svg);
    assert_eq!(of("losses.PNG").unwrap(), Format::Png);
    for name in ["losses.jpg", "losses", "png"] {
        let message = of(name).unwrap_err().to_string();
        assert!(
            message.contains("expected a name that ends in .svg or .png"),
            "{message}"
        );
    }
}
