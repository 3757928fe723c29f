(ns clojars.version
  "Which version of the application this is, and from which file it runs."
  (:require [clojure.java.io :as io])
  (:import (java.util Properties)))

(defn- packed
  "The version that the build has written into the jar, or nil."
  []
  (when-let [found (io/resource "META-INF/maven/clojars-web/clojars-web/pom.properties")]
    (with-open [in (io/input-stream found)]
      (.getProperty (doto (Properties.) (.load in)) "version"))))

(defn version
  "The version in project.clj: leiningen tells it to what it runs, and a jar carries it."
  []
  (or (System/getProperty "clojars-web.version") (packed) "unknown"))

(defn release
  "The name of the jar that this process was started from; elsewhere \"source\"."
  []
  (let [path (System/getProperty "java.class.path")]
    (if (re-find #"^[^:]+\.jar$" path)
      (.getName (io/file path))
      "source")))
